'use strict';

/*
 * One administrator, by Basic authentication. There is no open "admin party".
 */

const crypto = require('crypto');
const { HttpError } = require('./http');

const CHALLENGE = { 'WWW-Authenticate': 'Basic realm="vibe-embedded-couch"' };
const digest = (text) => crypto.createHash('sha256').update(text).digest();

/**
 * Makes the check that every request but `GET /` and `GET /_up` has to pass.
 * @param {string} credentials `user:password`
 * @returns {function(import('http').IncomingMessage): void} throws 401
 */
function authenticator(credentials) {
  const expected = digest(credentials);
  return function authenticate(req) {
    const match = /^Basic +([A-Za-z0-9+/=_-]+) *$/i.exec(req.headers.authorization || '');
    if (!match) {
      throw new HttpError(401, 'unauthorized',
        'You are not authorized to access this db.', CHALLENGE);
    }
    // Digests have one length, so the comparison takes one time whatever was sent.
    if (!crypto.timingSafeEqual(digest(Buffer.from(match[1], 'base64')), expected)) {
      throw new HttpError(401, 'unauthorized', 'Name or password is incorrect.', CHALLENGE);
    }
  };
}

module.exports = { authenticator };
