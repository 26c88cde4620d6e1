// Starts a program from its bundle (dist/bundle/, see scripts/bundle.mjs) with the code cache that the build made:
// V8 then compiles next to nothing. A cache of another version of node, or of other flags, is not used.
'use strict';

const { readFileSync, renameSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');

const bundles = path.join(__dirname, '../../dist/bundle');

/** The file's content, or undefined. */
function readIfThere(file, encoding) {
  try {
    return readFileSync(file, encoding);
  } catch {
    return undefined;
  }
}

/** In the build: what has been compiled in this run goes into the cache. */
function writeCacheAtExit(script, cacheFile) {
  process.on('exit', () => {
    const temporary = `${cacheFile}.${process.pid}`;
    writeFileSync(temporary, script.createCachedData());
    renameSync(temporary, cacheFile);
  });
}

/** Programs that run for long: no garbage is collected in the first 4 MiB, which is where a start and the first commands end. */
const LONG_RUN = ['--min-semi-space-size=4'];
/**
 * The others are over before optimized code has paid for its making: a function has run 30 times as much as usual before it is
 * optimized; no garbage is collected in the first 8 MiB; collecting takes no threads.
 */
const SHORT_RUN = ['--interrupt-budget=2000000', '--min-semi-space-size=8', '--single-threaded-gc'];
/**
 * What V8 is told. The launchers say the same to node, because asking here costs 3 ms, and the size of the heap is settled by
 * then.
 */
const flagsOf = (program) => (['qblockd', 'qblock-nbd'].includes(program) ? LONG_RUN : SHORT_RUN);

/** Runs a program by its name. Its entry module does the rest by itself. */
exports.start = (program) => {
  // The runtime would open itself to debuggers. Who has a use for the signal listens too.
  process.on('SIGUSR1', () => {});
  try {
    // What ps, top and pgrep call the process: at most 15 bytes.
    writeFileSync('/proc/self/comm', program);
  } catch {
    // No /proc here.
  }
  // The bundle's name has a hash of its content: what is read here fits together, whatever a build does meanwhile.
  const name = readIfThere(path.join(bundles, `${program}.name`), 'latin1');
  if (name === undefined) {
    process.stderr.write(`${program} has not been built yet: run \`npm start\`, or \`npm ci\` and \`npm run build\`\n`);
    process.exitCode = 1;
    return;
  }
  const file = path.join(bundles, name);
  // Before the script is there: its cache was made with the same flags.
  const flags = flagsOf(program).filter((flag) => !process.execArgv.includes(flag));
  for (const flag of flags) require('node:v8').setFlagsFromString(flag);
  const script = new vm.Script(
    // The build has left nothing but ASCII in there.
    `(function (exports, require, module, __filename, __dirname) {${readFileSync(file, 'latin1')}\n})`,
    {
      filename: file,
      cachedData: readIfThere(`${file}.cache`),
      importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    },
  );
  if (process.env.QBLOCKD_WRITE_CODE_CACHE === '1') writeCacheAtExit(script, `${file}.cache`);
  const bundle = { exports: {} };
  script.runInThisContext()(bundle.exports, module.constructor.createRequire(file), bundle, file, bundles);
};
