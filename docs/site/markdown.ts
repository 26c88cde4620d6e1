/** Guides and examples as pages. Blocks of the language "qmp" and links between documents are theirs; the rest is marked's. */

import { Marked } from 'marked';
import { escaped, heading, type Page } from './html.ts';

/** "Pause, resume" as an anchor. */
function anchorOf(text: string): string {
  return text
    .toLowerCase()
    .replace(/`/g, '')
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');
}

/** The title of a document: its first heading. */
export function titleOf(document: string): string {
  return /^# (.+)$/m.exec(document)?.[1] ?? 'qblockd';
}

/** The page of a document. */
export function documentPage(path: string, document: string): Page {
  const marked = new Marked({
    renderer: {
      heading({ tokens, depth, text }) {
        return heading(depth, anchorOf(text), this.parser.parseInline(tokens));
      },
      code({ text, lang = '' }) {
        const note = lang.split(' ').includes('shown') ? ' title="not run by the tests"' : '';
        return `<pre${note}><code>${escaped(text)}</code></pre>\n`;
      },
      link({ href, tokens }) {
        return `<a href="${escaped(href.replace(/\.md(?=#|$)/, '.html'))}">${this.parser.parseInline(tokens)}</a>`;
      },
    },
  });
  return { path, title: titleOf(document), body: marked.parse(document, { async: false }) };
}
