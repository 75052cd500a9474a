/** Passwords we generate, and their SCRAM verifiers. Clear passwords are never stored in the database. */
import { randomInt } from 'node:crypto';
import { buildVerifier, formatVerifier } from '@lakebase/pg-wire';

export const scramVerifier = async (password: string, salt?: Buffer): Promise<string> =>
  formatVerifier(await buildVerifier(password, salt === undefined ? {} : { salt }));

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
