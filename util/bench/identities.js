'use strict';

/*
 * node identities.js DIR USERS: makes keys, and tokens for that many users.
 *
 *   DIR/hs256.key   a secret, and
 *   DIR/es256.key   a public key, for vibe_jwt_key
 *   DIR/users       a line each: DID, database, token (HS256)
 *   DIR/es256       the first user's token (ES256)
 */

const crypto = require('crypto');
const fs = require('fs');
const path = require('path');

const [dir, users] = process.argv.slice(2);
const secret = crypto.randomBytes(32).toString('hex');
const { publicKey, privateKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
const write = (name, text) => fs.writeFileSync(path.join(dir, name), `${text}\n`, { mode: 0o600 });

function token(alg, sub, sign) {
  const exp = Math.floor(Date.now() / 1000) + 86400;
  const text = `${encode({ alg, typ: 'JWT' })}.${encode({ sub, exp })}`;
  return `${text}.${sign(text).toString('base64url')}`;
}

const hs256 = (text) => crypto.createHmac('sha256', secret).update(text).digest();
const es256 = (text) => crypto.sign('sha256', text, { key: privateKey, dsaEncoding: 'ieee-p1363' });

const did = (n) => `did:vibe:bench${n}`;
const database = (n) => `userdb-${Buffer.from(did(n)).toString('hex')}`;

write('hs256.key', secret);
write('es256.key', publicKey.export({ type: 'spki', format: 'pem' }));
write('es256', token('ES256', did(1), (text) => es256(Buffer.from(text))));
write('users', Array.from({ length: Number(users) }, (_, i) => i + 1)
  .map((n) => `${did(n)} ${database(n)} ${token('HS256', did(n), hs256)}`).join('\n'));
