/** The console's start: connects, and gives each room of the page what it shows. */

import { ConnectionLostError } from '../client/errors.ts';
import { createFeed } from './data/feed.ts';
import { createForms } from './forms/dialog.ts';
import { createInspector } from './graph/inspector.ts';
import { createGraphView } from './graph/view.ts';
import { createJobList } from './jobs/list.ts';
import { connectToDaemon } from './page/connection.ts';
import { byId, setText } from './page/dom.ts';
import { createEventList } from './page/events.ts';
import { tellError } from './page/notices.ts';
import { startTheme } from './page/theme.ts';
import { startPrompt } from './prompt/prompt.ts';
import { createCharts } from './traffic/charts.ts';

/** The buttons with a command open its form. */
function bindForms(open: (command: string) => void): void {
  for (const button of document.querySelectorAll<HTMLButtonElement>('button[data-form]'))
    button.addEventListener('click', () => open(button.dataset.form ?? ''));
}

async function start(): Promise<void> {
  let recolor: () => void = () => undefined;
  startTheme(() => recolor());
  const client = await connectToDaemon();
  const feed = createFeed(client, (error) => {
    // That the connection is lost is said above the page.
    if (!(error instanceof ConnectionLostError)) tellError(error);
  });
  const { hurry } = feed;
  const forms = createForms(client, () => feed.snapshot, hurry);
  bindForms(forms.open);

  const choose = (key: string | null): void => {
    view.select(key);
    inspector.choose(key);
  };
  const view = createGraphView(choose);
  const inspector = createInspector({ client, forms, hurry, closed: () => leave(), choose });
  const leave = (): void => {
    choose(null);
    document.querySelector<HTMLElement>('.boxes button[tabindex="0"]')?.focus();
  };
  byId('graph').append(view.element);
  byId('zoom-in').addEventListener('click', () => view.zoom(1.2));
  byId('zoom-out').addEventListener('click', () => view.zoom(1 / 1.2));
  byId('zoom-fit').addEventListener('click', () => view.fit());

  const charts = createCharts(feed);
  recolor = charts.recolor;
  const jobs = createJobList(client, hurry);
  feed.onEvent(createEventList());
  startPrompt(client, hurry);
  feed.onUpdate((snapshot, parts) => {
    if (parts.has('graph') || parts.has('jobs')) {
      view.show(snapshot);
      inspector.update(snapshot);
      const nodes = snapshot.graph.members.filter(({ kind }) => kind === 'node').length;
      byId('graph-empty').hidden = snapshot.graph.members.length > 0;
      setText(byId('graph-count'), nodes === 1 ? '1 node' : `${nodes} nodes`);
    }
    if (parts.has('jobs')) jobs.show(snapshot);
    charts.show(snapshot);
    document.documentElement.dataset.ready = 'yes';
  });
}

start().catch((error: unknown) => {
  byId('connection').dataset.state = 'lost';
  setText(byId('connection'), 'Not connected');
  tellError(error);
});
