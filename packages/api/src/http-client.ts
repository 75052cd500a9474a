/** A small JSON-over-HTTP client for internal calls: bearer token, deadline, our error envelope mapped back to LakebaseError. */
import { ERROR_CODES, type ErrorCode, LakebaseError } from '@lakebase/base';

/** Body of every non-2xx answer on internal surfaces. */
export interface ErrorBody {
  readonly error_code: ErrorCode;
  readonly message: string;
}

export interface HttpClientOptions {
  readonly baseUrl: string;
  readonly token: string;
  readonly timeoutMs?: number;
}

export class HttpClient {
  readonly baseUrl: string;
  readonly #token: string;
  readonly #timeoutMs: number;

  constructor(options: HttpClientOptions) {
    this.baseUrl = options.baseUrl.replace(/\/$/, '');
    this.#token = options.token;
    this.#timeoutMs = options.timeoutMs ?? 30_000;
  }

  async call<T>(method: string, path: string, body?: unknown, options: { timeoutMs?: number; signal?: AbortSignal } = {}): Promise<T> {
    const deadline = AbortSignal.timeout(options.timeoutMs ?? this.#timeoutMs);
    const signal = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal]);
    let response: Response;
    let text: string;
    try {
      response = await fetch(this.baseUrl + path, {
        method,
        signal,
        headers: { authorization: `Bearer ${this.#token}`, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      text = await response.text();
    } catch (cause) {
      if (options.signal?.aborted === true) throw cause;
      const code: ErrorCode = deadline.aborted ? 'TIMEOUT' : 'UNAVAILABLE';
      throw new LakebaseError(code, `${method} ${this.baseUrl}${path}: ${deadline.aborted ? 'no answer in time' : 'cannot connect'}`, {
        cause,
      });
    }
    if (!response.ok) throw errorFromBody(response.status, text, `${method} ${path}`);
    return (text === '' ? undefined : JSON.parse(text)) as T;
  }
}

/** The error in the body of a non-2xx answer. */
export function errorFromBody(status: number, text: string, what: string): LakebaseError {
  try {
    const body = JSON.parse(text) as Partial<ErrorBody>;
    if (typeof body.error_code === 'string' && body.error_code in ERROR_CODES)
      return new LakebaseError(body.error_code, body.message ?? what);
  } catch {
    /* not our envelope: fall through */
  }
  return new LakebaseError(status >= 500 ? 'UNAVAILABLE' : 'INVALID_ARGUMENT', `${what}: HTTP ${status} ${text.slice(0, 200)}`);
}
