/** What this daemon calls itself, and the release of the original that it stands in for. */

import type { VersionInfo } from '../../schema/generated/types.ts';

/** Version of the package (package.json; a test keeps the two equal). */
export const PACKAGE_VERSION = '0.1.0';

/** Clients judge features by these numbers, so they are the original's: its 7.2 series. */
export const VERSION_INFO: VersionInfo = {
  qemu: { major: 7, minor: 2, micro: 22 },
  package: `qblockd ${PACKAGE_VERSION}`,
};
