/** Credentials of an object store from a file: JSON with strings, readable by its owner only. Without a file the provider's SDK looks where it always
 *  does: environment, profiles, the role of the machine. */
import { readFileSync, statSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

const FILE_BYTES_MAX = 64 * 1024;

/** Exactly one of the `forms` (lists of keys; `name?` may be missing) has to fit. */
export function readCredentials(file: string, forms: readonly (readonly string[])[]): Readonly<Record<string, string>> {
  const wrong = (message: string, cause?: unknown): LakebaseError =>
    new LakebaseError('CONFIG', `credentials of the object store, ${file}: ${message}`, { cause });
  let body: unknown;
  try {
    const { mode, size } = statSync(file);
    if ((mode & 0o077) !== 0) throw wrong(`others may read it; run: chmod 600 ${file}`);
    if (size > FILE_BYTES_MAX) throw wrong('it is too long to be credentials');
    body = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error instanceof LakebaseError) throw error;
    // The text of a JSON error quotes the file.
    throw wrong(
      error instanceof SyntaxError ? 'it is not JSON' : (error as Error).message,
      error instanceof SyntaxError ? undefined : error,
    );
  }
  if (typeof body !== 'object' || body === null) throw wrong('it is not a JSON object');
  const values = body as Record<string, unknown>;
  const fits = forms.some(
    (form) =>
      form.every((name) => name.endsWith('?') || typeof values[name] === 'string') &&
      Object.keys(values).every((name) => typeof values[name] === 'string' && (form.includes(name) || form.includes(`${name}?`))),
  );
  if (!fits) throw wrong(`it must hold ${forms.map((form) => form.join(', ')).join('; or ')}, as strings`);
  return values as Record<string, string>;
}
