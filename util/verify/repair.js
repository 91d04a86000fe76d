'use strict';

/*
 * Sets places in `global` right. What is there and what its document says is read anew, what is
 * right is written in the place of the very revision that was read, and then it is read again:
 * whoever else writes meanwhile makes one of the two begin again.
 *
 * Over a tombstone CouchDB takes a write only without a revision, so that nothing is compared.
 * There, as where nothing is, a stub goes first, which nobody can read.
 */

const { PRIVATE } = require('./access');
const { conflictsOf, isNewer, judge, stubOf, textOf, tombstoneOf } = require('./copy');
const { CouchError, Fatal, sleep } = require('./couch');

const MAX_TRIES = 100;
const WAIT_MS = 10;
const MAX_WAIT_MS = 200;
/** The database that the module makes, if it is not there. */
const DEFAULT_GLOBAL = 'global';
const OFTEN = 'it is changed all the time';
const NEWER = 'its format is a later one';

class Repair {
  /** @param {import('./check').Check} check */
  constructor(check) {
    this.check = check;
    this.couch = check.couch;
    this.global = check.options.global;
  }

  /**
   * @param {import('./check').Suspect[]} suspects documents of one database, or none of any
   * @returns {Promise<string[]>} for each why it is not repaired, or ''
   */
  async mend(suspects) {
    this.ready ??= this.#prepare();
    await this.ready;
    const results = new Map();
    let left = suspects;
    let why = OFTEN;
    try {
      for (let n = 0; n < MAX_TRIES && left.length; n++) {
        if (n > 1) await sleep(Math.min(WAIT_MS * n, MAX_WAIT_MS));
        await this.#step(left, results);
        left = left.filter(({ gid }) => !results.has(gid));
      }
    } catch (error) {
      if (!(error instanceof CouchError || error instanceof SyntaxError)) throw error;
      why = error.message;
    }
    return suspects.map(({ gid }) => results.get(gid) ?? why);
  }

  /** Writes what is to be written next; `results` gets those that are done. */
  async #step(suspects, results) {
    // The places first: whoever writes something newer there after that is noticed.
    const rows = await this.check.places(suspects.map(({ gid }) => gid));
    const steps = await (suspects[0].pair ? this.#nextOfPairs(suspects, rows)
      : this.#nextOfForeign(suspects, rows));
    const writes = [];
    steps.forEach(({ done, text }, i) => {
      if (done !== undefined) results.set(suspects[i].gid, done);
      else writes.push({ gid: suspects[i].gid, text });
    });
    if (!writes.length) return;
    const errors = await this.couch.write(this.global, writes.map(({ text }) => text), this.copies);
    writes.forEach(({ gid }, i) => {
      if (errors[i] && errors[i] !== 'conflict') results.set(gid, errors[i]);
    });
  }

  /** Makes `global` where there is none; under another name that may be a slip of the pen. */
  async #prepare() {
    if (!await this.couch.info(this.global)) {
      if (this.global !== DEFAULT_GLOBAL) throw new Fatal(`there is no database ${this.global}`);
      await this.couch.create(this.global);
    }
    this.copies = await this.couch.copies(this.global);
  }

  async #nextOfPairs(suspects, rows) {
    const wanted = await this.check.wanted(suspects[0].pair, suspects.map(({ pair }) => pair.id));
    return Promise.all(suspects.map(({ gid, pair }, i) =>
      this.#nextOfPair(gid, pair, wanted[i], rows[i])));
  }

  /**
   * What is to be done next with a place.
   * @returns {Promise<{done: string} | {text: string}>} nothing (any more), or what to write
   */
  async #nextOfPair(gid, pair, wanted, row) {
    const finding = judge(wanted, row);
    if (!finding || (finding.kind === 'stale' && await this.check.isTwin(pair, row))) {
      return { done: '' };
    }
    const old = await this.#old(gid, row);
    if (isNewer(old)) return { done: NEWER };
    if (!row || !row.doc) return { text: stubOf(wanted, old) };
    const [other] = conflictsOf(old);
    if (other) return { text: textOf({ ...wanted, access: PRIVATE }, old, other) };
    return { text: textOf(wanted, old, row.rev) };
  }

  /** What is no copy goes. */
  async #nextOfForeign(suspects, rows) {
    const found = await this.check.classify(rows.filter((row) => row && row.doc));
    const findings = new Map(found.map(({ gid, finding }) => [gid, finding]));
    return suspects.map(({ gid }, i) => {
      const finding = findings.get(gid);
      if (!finding) return { done: '' };
      if (finding.leave) return { done: finding.why };
      const old = new Map(rows[i].doc);
      const [other] = conflictsOf(old);
      return { text: tombstoneOf(gid, old, other ?? rows[i].rev) };
    });
  }

  /** What the place holds: a copy's members or a tombstone's, none if nothing was ever there. */
  async #old(gid, row) {
    if (!row) return new Map();
    if (row.doc) return new Map(row.doc);
    return await this.couch.revision(this.global, gid, row.rev) ?? new Map();
  }
}

module.exports = { Repair };
