'use strict';

/*
 * What verify.sh tells: the differences and the sum on stdout, progress and failures on stderr.
 */

const { line, plural } = require('./terminal');

/** How often progress is told, on a terminal and elsewhere. */
const TERMINAL_MS = 500;
const PLAIN_MS = 10000;
const MAX_FAILURES = 20;

class Report {
  /**
   * @param {{json: boolean, quiet: boolean, progress: boolean}} options
   * @param {string[]} kinds what may be found wrong
   */
  constructor(options, kinds) {
    Object.assign(this, { options, kinds });
    this.terminal = Boolean(process.stderr.isTTY);
    this.began = Date.now();
    this.told = this.began;
    this.shown = false;
    this.begin();
  }

  /** A run through all begins. */
  begin() {
    this.found = this.#zeros();
    this.repaired = this.#zeros();
    this.failures = 0;
  }

  #zeros() {
    return Object.fromEntries(this.kinds.map((kind) => [kind, 0]));
  }

  get differences() {
    return this.kinds.reduce((sum, kind) => sum + this.found[kind], 0);
  }

  get mended() {
    return this.kinds.reduce((sum, kind) => sum + this.repaired[kind], 0);
  }

  #clear() {
    if (this.shown) process.stderr.write('\r\x1b[K');
    this.shown = false;
  }

  /**
   * @param {import('./check').Suspect | import('./feeds').Suspect} suspect
   * @param {string} [result] why it was not repaired, '' if it was, undefined if nobody tried
   */
  difference({ feed, gid, pair, finding }, result) {
    this.found[finding.kind]++;
    if (result === '') this.repaired[finding.kind]++;
    if (this.options.quiet) return;
    this.#clear();
    const did = result === undefined ? undefined : result || 'repaired';
    if (this.options.json) {
      const { kind, why } = finding;
      const found = { kind, feed: feed?.name, id: gid, db: pair?.db, why, result: did };
      process.stdout.write(`${JSON.stringify(found)}\n`);
      return;
    }
    const columns = [finding.kind, ...(feed ? [feed.name] : []), gid, finding.why];
    if (did) columns.push(did === 'repaired' ? did : `not repaired: ${did}`);
    process.stdout.write(`${columns.map(line).join('\t')}\n`);
  }

  /** A database, or a document, that could not be looked at. */
  failed(what, error) {
    this.failures++;
    this.#clear();
    if (this.failures > MAX_FAILURES) return;
    process.stderr.write(`verify.sh: ${line(what)}: ${line(error.message)}\n`);
  }

  progress(counts, pass) {
    const { progress, quiet } = this.options;
    if (!progress && (quiet || !this.terminal)) return;
    const now = Date.now();
    if (now - this.told < (this.terminal ? TERMINAL_MS : PLAIN_MS)) return;
    this.told = now;
    const text = `${Math.round((now - this.began) / 1000)} s, in ${pass}: `
      + `${plural(counts.databases, 'database', 'databases')}, `
      + `${plural(counts.documents, 'document', 'documents')}, `
      + `${counts.feeds === undefined ? plural(counts.copies, 'copy', 'copies')
        : plural(counts.rows, 'row', 'rows')}, `
      + `${plural(this.differences, 'difference', 'differences')}`;
    process.stderr.write(this.terminal ? `\r\x1b[K${text}` : `verify.sh: ${text}\n`);
    this.shown = this.terminal;
  }

  /**
   * The sum. After a repair `first` is what the run before found and mended.
   * @param {object} counts
   * @param {{found: object, repaired: object}} [first]
   */
  sum(counts, first) {
    this.#clear();
    const { found } = this;
    if (this.options.json) {
      process.stdout.write(`${JSON.stringify({
        ok: !this.differences && !counts.failed,
        ...counts,
        found: first ? first.found : found,
        ...(first ? { repaired: first.repaired, left: found } : {}),
        seconds: Math.round((Date.now() - this.began) / 100) / 10,
      })}\n`);
    } else if (!this.options.quiet) {
      process.stdout.write(`${this.#sentences(counts, first).join('\n')}\n`);
    }
  }

  #sentences(counts, first) {
    const list = (sum) => this.kinds.filter((kind) => sum[kind])
      .map((kind) => `${sum[kind].toLocaleString('en')} ${kind}`).join(', ') || 'no difference';
    const lines = [
      `${plural(counts.databases, 'database', 'databases')}, `
        + `${plural(counts.documents, 'document', 'documents')}, ${counts.feeds === undefined
          ? `${counts.expected.toLocaleString('en')} of them for others to read; `
            + `${plural(counts.copies, 'copy', 'copies')}`
          : `${counts.expected.toLocaleString('en')} of them for a feed; `
            + `${plural(counts.feeds, 'feed', 'feeds')}, ${plural(counts.rows, 'row', 'rows')}`}`,
    ];
    const notes = [
      [counts.unowned, 'without a known owner, not mirrored (util/adopt.sh)'],
      [counts.uncollected, 'for others to read, but in no collection: not mirrored'],
      [counts.newer, 'written by a later version, left alone'],
      [counts.twins, 'of one id in two databases of their owner: one is mirrored'],
      [counts.moving, 'changed too often to be looked at'],
      [counts.failed, 'that could not be looked at'],
    ];
    for (const [count, text] of notes) {
      if (count) lines.push(`${count.toLocaleString('en')} ${text}`);
    }
    if (!first) return [...lines, list(this.found)];
    return [...lines, `found: ${list(first.found)}`, `repaired: ${list(first.repaired)}`,
      `left: ${list(this.found)}`];
  }
}

module.exports = { Report };
