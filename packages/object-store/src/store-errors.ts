/** From what an SDK throws to one of our codes: by a table of the provider's own codes, then by HTTP status, then by what networks do. Everything
 *  unknown is UNAVAILABLE, so that it is tried again and never taken for the absence of an object. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';

/** The code and what a person may do about it. */
export type StoreMeaning = readonly [ErrorCode, string];
export type StoreErrorTable = Readonly<Record<string, StoreMeaning>>;

export interface Failure {
  /** The provider's name for it; undefined where the error has none. */
  readonly code: string | undefined;
  readonly status: number | undefined;
  readonly message: string;
}

const AGAIN = 'it is tried again';
const STATUS: Readonly<Record<number, StoreMeaning>> = {
  400: ['INVALID_ARGUMENT', 'the store refuses the request'],
  401: ['PERMISSION_DENIED', 'the credentials are not accepted'],
  403: ['PERMISSION_DENIED', 'the credentials may not do this'],
  409: ['UNAVAILABLE', `another request is in its way; ${AGAIN}`],
  412: ['CONFLICT', 'the object has changed'],
  416: ['INVALID_ARGUMENT', 'the object has no such bytes'],
  429: ['RESOURCE_EXHAUSTED', `the store limits the rate of requests; ${AGAIN}`],
  501: ['UNSUPPORTED', 'the store cannot do this'],
  507: ['RESOURCE_EXHAUSTED', 'the store is full'],
};

export function meaningOf(table: StoreErrorTable, { code, status }: Failure): StoreMeaning {
  if (code !== undefined && Object.hasOwn(table, code)) return table[code] as StoreMeaning;
  const byStatus = status === undefined ? undefined : STATUS[status];
  return byStatus ?? ['UNAVAILABLE', `the store does not serve the request now; ${AGAIN}`];
}

export function storeError(what: string, failure: Failure, meaning: StoreMeaning, cause: unknown): LakebaseError {
  const said = [failure.code, failure.status === undefined ? undefined : `HTTP ${failure.status}`]
    .filter((s) => s !== undefined)
    .join(', ');
  return new LakebaseError(meaning[0], `${what}: ${meaning[1]}${said === '' ? '' : ` (${said})`}: ${failure.message.slice(0, 300)}`, {
    cause,
  });
}

/** An error and what caused it, from the outside in. */
export function* errorChain(error: unknown): Generator<Record<string, unknown>> {
  let at: unknown = error;
  for (let depth = 0; depth < 6 && typeof at === 'object' && at !== null; depth++) {
    yield at as Record<string, unknown>;
    at = (at as { cause?: unknown }).cause;
  }
}

const NETWORK = /^(E[A-Z]{3,}|UND_ERR_[A-Z_]+|CERT_[A-Z_]+|[A-Z_]*CERT[A-Z_]*|ERR_(TLS|SSL|STREAM|SOCKET|HTTP2)_[A-Z_]+)$/;
/** The system's code of a failed connection somewhere in the chain. */
export function networkCode(error: unknown): string | undefined {
  for (const { code } of errorChain(error)) if (typeof code === 'string' && NETWORK.test(code)) return code;
  return undefined;
}
