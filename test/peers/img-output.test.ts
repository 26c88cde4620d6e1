/** qblock-img beside qemu-img: output and status of command lines that leave the images as they are. */

import { QUIET_CASES } from './img-cases.ts';
import { compareTools } from './img-comparison.ts';

compareTools(Object.fromEntries(Object.entries(QUIET_CASES).map(([name, run]) => [name, { run }])));
