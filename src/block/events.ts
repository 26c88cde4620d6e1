/** Where the block layer's events go. The daemon supplies the sink; this floor knows nothing of QMP sessions. */

import type { Events } from '../../schema/generated/types.ts';

export interface EventSink {
  emit<K extends keyof Events>(name: K, data: Events[K]): void;
}
