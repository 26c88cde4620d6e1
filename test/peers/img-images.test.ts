/** qblock-img beside qemu-img: what command lines make of images. */

import { IMAGE_CASES } from './img-cases.ts';
import { compareTools } from './img-comparison.ts';

compareTools(IMAGE_CASES);
