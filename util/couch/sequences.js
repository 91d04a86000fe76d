'use strict';

/*
 * Update sequences as clients see them: opaque text, `N-…`. The tail names the database's
 * identity, so that a sequence of a database that was deleted and made anew means "from the
 * start", as with CouchDB.
 */

const { badRequest } = require('./http');

const SEQ = /^(\d{1,15})-g1AAAA([0-9a-f]{16})$/;

/** @returns {string} */
const formatSeq = (db, seq) => `${seq}-g1AAAA${db.identity}`;

/**
 * @param {string} text what a client gave as `since`
 * @param {number} current the database's sequence now
 * @returns {number}
 */
function parseSeq(db, text, current) {
  if (text === 'now') return current;
  if (text === '0' || text === '') return 0;
  const match = SEQ.exec(text.replace(/^"(.*)"$/, '$1'));
  if (!match) throw badRequest("Malformed sequence supplied in 'since' parameter.");
  const seq = Number(match[1]);
  return match[2] === db.identity && seq <= current ? seq : 0;
}

module.exports = { formatSeq, parseSeq };
