'use strict';

/*
 * What the two commands have in common: their options, what they print, how they end.
 */

const { parseArgs } = require('util');
const { Fatal } = require('./couch');
const { isDatabase } = require('./ids');

const DEFAULT_PREFIX = 'userdb-';

const plural = (count, one, many) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

/** Text of unknown origin, for one line of a terminal. */
const line = (text) => String(text).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g,
  (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);

/** Reads the arguments, or throws with the usage. */
function readArguments(config) {
  try {
    return parseArgs(config);
  } catch (error) {
    throw new Fatal(`${error.message.split('. ')[0]} (see --help)`);
  }
}

/** The prefixes of users' databases; one that another one covers is left out. */
function readPrefixes(values = [DEFAULT_PREFIX]) {
  for (const prefix of values) {
    if (!isDatabase(prefix)) throw new Fatal(`not the beginning of a database's name: ${prefix}`);
  }
  return [...new Set(values)].filter((prefix) =>
    !values.some((other) => other !== prefix && prefix.startsWith(other)));
}

/** Runs a command: its exit status is what `main` returns, or 2 where it cannot work. */
async function run(name, main) {
  // `| head` has seen enough.
  process.stdout.on('error', () => process.exit(2));
  try {
    process.exitCode = await main();
  } catch (error) {
    const text = error instanceof Fatal ? error.message : error.stack;
    process.stderr.write(`${name}: ${text}\n`);
    process.exitCode = 2;
  }
}

module.exports = { line, plural, readArguments, readPrefixes, run };
