/** Credentials of an object store from a file: JSON with strings, readable by its owner only. Without a file the provider's SDK looks where it always
 *  does: environment, profiles, the role of the machine. */
import { readFileSync, statSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

const FILE_BYTES_MAX = 64 * 1024;

const wrongFile = (file: string, message: string, cause?: unknown): LakebaseError =>
  new LakebaseError('CONFIG', `credentials of the object store, ${file}: ${message}`, { cause });

function readJson(file: string): Readonly<Record<string, unknown>> {
  let body: unknown;
  try {
    const { mode, size } = statSync(file);
    if ((mode & 0o077) !== 0) throw wrongFile(file, `others may read it; run: chmod 600 ${file}`);
    if (size > FILE_BYTES_MAX) throw wrongFile(file, 'it is too long to be credentials');
    body = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error instanceof LakebaseError) throw error;
    // The text of a JSON error quotes the file.
    if (error instanceof SyntaxError) throw wrongFile(file, 'it is not JSON');
    throw wrongFile(file, (error as Error).message, error);
  }
  if (typeof body !== 'object' || body === null) throw wrongFile(file, 'it is not a JSON object');
  return body as Record<string, unknown>;
}

/** Exactly one of the `forms` (lists of keys; `name?` may be missing) has to fit. */
export function readCredentials(file: string, forms: readonly (readonly string[])[]): Readonly<Record<string, string>> {
  const values = readJson(file);
  const fits = forms.some(
    (form) =>
      form.every((name) => name.endsWith('?') || typeof values[name] === 'string') &&
      Object.keys(values).every((name) => typeof values[name] === 'string' && (form.includes(name) || form.includes(`${name}?`))),
  );
  if (!fits) throw wrongFile(file, `it must hold ${forms.map((form) => form.join(', ')).join('; or ')}, as strings`);
  return values as Record<string, string>;
}

/** The key of a Google service account. Other kinds of credential files name addresses to call or programs to run; those belong into the environment
 *  (GOOGLE_APPLICATION_CREDENTIALS), where the operator alone puts them. */
export function readServiceAccount(file: string): { readonly client_email: string; readonly private_key: string } {
  const all = readJson(file);
  const { type, client_email, private_key } = all;
  if (type !== 'service_account' || typeof client_email !== 'string' || typeof private_key !== 'string')
    throw wrongFile(file, 'it must be the JSON of a service account key (type service_account)');
  return { client_email, private_key };
}
