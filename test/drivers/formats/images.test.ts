/** Images that VMware, VirtualBox, Virtual PC and others made: what is read from them is known by its checksum. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { runTool, TOOLS } from '../../peers/tool-diff.ts';
import { sha256, unpackImages } from './found-images.ts';

const folder = unpackImages();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const CONTENT: Readonly<Record<string, readonly [format: string, sha256: string]>> = {
  'workstation4.vmdk': ['vmdk', '854c3db1c4a07a241e2ed9fbd8892adf2adc662c7862a75deed26f3483f414c9'],
  'streamOptimized.vmdk': ['vmdk', 'a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727'],
  'ovf-package.vmdk': ['vmdk', '9acca8e8c22201155389f65abbf6bc9723edc7384ead80503839f49dcc56d767'],
  'twoGbMaxExtentSparse.vmdk': ['vmdk', 'a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727'],
  'virtualbox.vdi': ['vdi', 'fdb27bb2d5120841c835a3907499f83836fdd2ce507dc41d58fc7b04a06e605c'],
  'dynamic.vhd': ['vpc', 'c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25'],
};

for (const [name, [format, checksum]] of Object.entries(CONTENT)) {
  test(`${name} is found to be ${format}, and read`, async () => {
    const info = await runTool(TOOLS.img.ours, ['info', name], folder);
    expect(info.stdout).toContain(`file format: ${format}\n`);
    const outcome = await runTool(TOOLS.img.ours, ['convert', '-O', 'raw', name, 'out.raw'], folder);
    expect(outcome).toMatchObject({ status: 0, stderr: '' });
    expect(sha256(path.join(folder, 'out.raw'))).toBe(checksum);
  });
}

test('a differencing image without its parent is refused', async () => {
  const outcome = await runTool(
    TOOLS.img.ours,
    ['convert', '-O', 'raw', 'fat-differential.vhd', 'out.raw'],
    folder,
  );
  expect(outcome.status).toBe(1);
  expect(outcome.stderr).toContain("Could not open 'fat-parent.vhd': No such file or directory");
});
