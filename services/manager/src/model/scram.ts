/** SCRAM-SHA-256 verifiers (RFC 5803 in Postgres's spelling) and generated passwords. Clear passwords are never stored in the database.
 *  Only for passwords we generate: they are ASCII, so SASLprep is the identity. */
import { createHash, createHmac, pbkdf2Sync, randomBytes, randomInt } from 'node:crypto';

const ITERATIONS = 4096;
const SALT_BYTES = 16;

export function scramVerifier(password: string, salt: Buffer = randomBytes(SALT_BYTES), iterations: number = ITERATIONS): string {
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256');
  const hmac = (text: string): Buffer => createHmac('sha256', salted).update(text).digest();
  const storedKey = createHash('sha256').update(hmac('Client Key')).digest('base64');
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey}:${hmac('Server Key').toString('base64')}`;
}

/** 24 characters of four classes, all safe in a URL: about 140 bits. */
export function generatePassword(): string {
  const classes = ['abcdefghijkmnopqrstuvwxyz', 'ABCDEFGHJKLMNPQRSTUVWXYZ', '23456789', '-_.'] as const;
  const all = classes.join('');
  const pick = (from: string): string => from[randomInt(from.length)] as string;
  const chars = [...classes.map(pick), ...Array.from({ length: 20 }, () => pick(all))];
  for (let i = chars.length - 1; i > 0; i--) {
    const j = randomInt(i + 1);
    [chars[i], chars[j]] = [chars[j] as string, chars[i] as string];
  }
  return chars.join('');
}
