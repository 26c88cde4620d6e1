/** Pieces of HTML that all pages are made of, and the page around them: one file that needs nothing else. */

/** Text as HTML. */
export function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

/** Text in which `code` is marked by backquotes. */
export function inline(text: string): string {
  return escaped(text).replace(/`([^`]+)`/g, '<code>$1</code>');
}

export const code = (text: string): string => `<code>${escaped(text)}</code>`;

export function heading(level: number, id: string, html: string): string {
  return `<h${level} id="${escaped(id)}">${html} <a class="here" href="#${escaped(id)}">#</a></h${level}>\n`;
}

/** A table; cells are HTML. Nothing where there are no rows. */
export function table(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return '';
  const head = titles.map((title) => `<th>${title}</th>`).join('');
  const body = rows.map((cells) => `<tr>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>\n`).join('');
  return `<div class="wide"><table><thead><tr>${head}</tr></thead><tbody>\n${body}</tbody></table></div>\n`;
}

const STYLE = `
:root { color-scheme: light dark; --line: #8884; --code: #8882; --link: light-dark(#0550ae, #79b8ff); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 4rem; max-width: 62rem; }
nav { padding: .75rem 0; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 2.2rem; } h3 { font-size: 1.1rem; margin-top: 1.8rem; } :is(h1, h2, h3) code { font-size: inherit; }
.here { visibility: hidden; font-weight: normal; } :is(h1, h2, h3):hover .here { visibility: visible; }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: var(--code); border-radius: 3px; }
code { padding: .1em .25em; } pre { padding: .7rem .9rem; overflow-x: auto; } pre code { padding: 0; background: none; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
.note { font-size: .85rem; border: 1px solid var(--line); border-radius: 3px; padding: 0 .35em; white-space: nowrap; }
.columns { columns: 15rem; padding-left: 1.2rem; }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem .6rem; }
`;

export interface Page {
  /** Path in the site, such as "guides/backup.html". */
  readonly path: string;
  readonly title: string;
  /** What is inside of the page. */
  readonly body: string;
}

/** From the page at `from` to a place in the site: "drivers.html#qcow2". */
export function linkTo(from: string, place: string): string {
  return `${'../'.repeat(from.split('/').length - 1)}${place}`;
}

/** The file of a page. */
export function fileOf({ path, title, body }: Page): string {
  const to = (place: string): string => linkTo(path, place);
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)} - qblockd</title>
<style>${STYLE}</style>
</head>
<body>
<nav><a href="${to('index.html')}">qblockd</a><a href="${to('index.html#guides')}">Guides</a><a href="${to('index.html#reference')}">QMP</a><a href="${to('drivers.html')}">Drivers</a><a href="${to('index.html#tools')}">Programs</a><a href="${to('names.html')}">Names</a></nav>
<main>
${body}</main>
</body>
</html>
`;
}
