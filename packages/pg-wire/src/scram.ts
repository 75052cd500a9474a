/** The SCRAM-SHA-256 exchange, client and server side, as pure state machines (RFC 5802, RFC 7677; `tls-server-end-point` of RFC 5929).
 *
 *      client                          server
 *      n,,n=,r=<nonce>           ->
 *                                <-    r=<nonce><nonce>,s=<salt>,i=<iterations>
 *      c=<binding>,r=…,p=<proof> ->
 *                                <-    v=<signature>
 *
 *  Invariants: steps run once and in order; a message that does not parse is a ProtocolError; a proof that does not match only shows
 *  at the end, after the same work as one that does. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { ProtocolError } from './errors.ts';
import {
  SCRAM_ITERATIONS_MAX,
  SCRAM_KEY_BYTES,
  type ScramVerifier,
  hmac,
  parseBase64,
  saltPassword,
  sha256,
  xor,
} from './scram-verifier.ts';

export const SCRAM_SHA_256 = 'SCRAM-SHA-256';
export const SCRAM_SHA_256_PLUS = 'SCRAM-SHA-256-PLUS';
const MESSAGE_MAX = 8_192;
const NONCE_MAX = 512;
const SALT_BYTES_MAX = 1_024;
const NONCE_BYTES = 18;
/** Printable ASCII without the comma. */
const NONCE = /^[\x21-\x2b\x2d-\x7e]+$/;
const BINDING_TYPE = 'tls-server-end-point';

const malformed = (what: string): ProtocolError => new ProtocolError(`malformed SCRAM message: ${what}`);

/** `k=v` at the head of `text`, up to the comma. */
function attribute(part: string | undefined, key: string): string {
  if (part === undefined || !part.startsWith(`${key}=`)) throw malformed(`attribute ${key} expected`);
  return part.slice(2);
}

function nonceOf(text: string): string {
  if (text.length === 0 || text.length > NONCE_MAX || !NONCE.test(text)) throw malformed('nonce');
  return text;
}

function bounded(message: string): string {
  if (message.length > MESSAGE_MAX) throw malformed('too long');
  return message;
}

export interface ScramServerOptions {
  /** Candidates that share salt and iterations; usually one. More than one lets a caller accept any of several passwords. */
  readonly verifiers: readonly ScramVerifier[];
  /** Hash of our certificate, when the connection is TLS: SCRAM-SHA-256-PLUS is then offered too. */
  readonly endpointBinding?: Buffer | undefined;
  /** For tests. */
  readonly nonce?: string;
}

export class ScramServer {
  readonly #options: ScramServerOptions;
  #step: 'first' | 'final' | 'done' = 'first';
  #header = '';
  #plus = false;
  #nonce = '';
  #clientFirstBare = '';
  #serverFirst = '';

  constructor(options: ScramServerOptions) {
    const first = options.verifiers[0];
    if (first === undefined) throw new TypeError('a SCRAM server needs a verifier');
    if (options.verifiers.some((v) => v.iterations !== first.iterations || !v.salt.equals(first.salt)))
      throw new TypeError('candidates must share salt and iterations');
    this.#options = options;
  }

  get mechanisms(): string[] {
    return this.#options.endpointBinding === undefined ? [SCRAM_SHA_256] : [SCRAM_SHA_256_PLUS, SCRAM_SHA_256];
  }

  /** client-first-message -> server-first-message. The user name in it is ignored: the start-up packet has it. */
  first(mechanism: string, clientFirst: string): string {
    if (this.#step !== 'first') throw malformed('out of order');
    this.#step = 'done';
    if (!this.mechanisms.includes(mechanism)) throw new ProtocolError('client selected an invalid SASL authentication mechanism');
    this.#plus = mechanism === SCRAM_SHA_256_PLUS;
    const parts = bounded(clientFirst).split(',');
    const flag = parts[0] ?? '';
    if (this.#plus ? flag !== `p=${BINDING_TYPE}` : flag !== 'n' && flag !== 'y') throw malformed('channel binding flag');
    // 'y': the client could bind but believes we cannot. We offered it, so somebody in between removed the offer (RFC 5802, 6).
    if (flag === 'y' && this.#options.endpointBinding !== undefined)
      throw new ProtocolError('SCRAM channel binding negotiation error: the client did not see the server offer channel binding', '28000');
    if (parts[1] !== '') throw malformed('authorization identity is not supported');
    this.#header = `${flag},,`;
    if (parts[2]?.startsWith('m=') === true) throw malformed('mandatory extension');
    attribute(parts[2], 'n');
    const clientNonce = nonceOf(attribute(parts[3], 'r'));
    this.#clientFirstBare = clientFirst.slice(this.#header.length);
    this.#nonce = clientNonce + (this.#options.nonce ?? randomBytes(NONCE_BYTES).toString('base64'));
    const v = this.#options.verifiers[0] as ScramVerifier;
    this.#serverFirst = `r=${this.#nonce},s=${v.salt.toString('base64')},i=${v.iterations}`;
    this.#step = 'final';
    return this.#serverFirst;
  }

  /** client-final-message -> which candidate matched and the server-final-message; undefined when none did. */
  final(clientFinal: string): { readonly matched: number; readonly serverFinal: string } | undefined {
    if (this.#step !== 'final') throw malformed('out of order');
    this.#step = 'done';
    const proofAt = bounded(clientFinal).lastIndexOf(',p=');
    if (proofAt < 0) throw malformed('attribute p expected');
    const withoutProof = clientFinal.slice(0, proofAt);
    const parts = withoutProof.split(',');
    const binding = this.#plus ? (this.#options.endpointBinding as Buffer) : Buffer.alloc(0);
    const expected = Buffer.concat([Buffer.from(this.#header), binding]).toString('base64');
    if (attribute(parts[0], 'c') !== expected) throw new ProtocolError('SCRAM channel binding check failed', '28000');
    if (attribute(parts[1], 'r') !== this.#nonce) throw malformed('nonce does not match');
    const proof = parseBase64(clientFinal.slice(proofAt + 3), SCRAM_KEY_BYTES);
    if (proof?.length !== SCRAM_KEY_BYTES) throw malformed('proof');
    const authMessage = `${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`;
    let matched = -1;
    this.#options.verifiers.forEach((v, i) => {
      const clientKey = xor(proof, hmac(v.storedKey, authMessage));
      if (timingSafeEqual(sha256(clientKey), v.storedKey)) matched = i;
    });
    if (matched < 0) return undefined;
    const signature = hmac((this.#options.verifiers[matched] as ScramVerifier).serverKey, authMessage);
    return { matched, serverFinal: `v=${signature.toString('base64')}` };
  }
}

export class ScramClient {
  readonly #password: string;
  readonly #nonce: string;
  readonly #bare: string;
  #step: 'first' | 'continue' | 'verify' | 'done' = 'first';
  #signature: Buffer | undefined;

  /** `user` only matters to servers that read it from SCRAM; Postgres wants it empty. */
  constructor(password: string, options: { readonly user?: string; readonly nonce?: string } = {}) {
    this.#password = password;
    this.#nonce = options.nonce ?? randomBytes(NONCE_BYTES).toString('base64');
    this.#bare = `n=${(options.user ?? '').replaceAll('=', '=3D').replaceAll(',', '=2C')},r=${this.#nonce}`;
  }

  first(): string {
    if (this.#step !== 'first') throw malformed('out of order');
    this.#step = 'continue';
    return `n,,${this.#bare}`;
  }

  /** server-first-message -> client-final-message. */
  async continue(serverFirst: string): Promise<string> {
    if (this.#step !== 'continue') throw malformed('out of order');
    this.#step = 'done';
    const parts = bounded(serverFirst).split(',');
    const nonce = nonceOf(attribute(parts[0], 'r'));
    if (!nonce.startsWith(this.#nonce) || nonce.length === this.#nonce.length) throw malformed('nonce does not extend ours');
    const salt = parseBase64(attribute(parts[1], 's'), SALT_BYTES_MAX);
    if (salt === undefined || salt.length === 0) throw malformed('salt');
    const iterationText = attribute(parts[2], 'i');
    const iterations = /^[0-9]{1,9}$/.test(iterationText) ? Number(iterationText) : 0;
    if (iterations < 1 || iterations > SCRAM_ITERATIONS_MAX) throw malformed('iteration count');
    const salted = await saltPassword(this.#password, salt, iterations);
    const clientKey = hmac(salted, 'Client Key');
    const withoutProof = `c=biws,r=${nonce}`;
    const authMessage = `${this.#bare},${serverFirst},${withoutProof}`;
    const proof = xor(clientKey, hmac(sha256(clientKey), authMessage));
    this.#signature = hmac(hmac(salted, 'Server Key'), authMessage);
    this.#step = 'verify';
    return `${withoutProof},p=${proof.toString('base64')}`;
  }

  /** Throws unless the server proved that it knows the verifier. */
  verify(serverFinal: string): void {
    if (this.#step !== 'verify') throw malformed('out of order');
    this.#step = 'done';
    const part = bounded(serverFinal).split(',')[0];
    if (part?.startsWith('e=') === true) throw new ProtocolError(`SCRAM authentication failed: ${part.slice(2, 102)}`, '28P01');
    const given = parseBase64(attribute(part, 'v'), SCRAM_KEY_BYTES);
    if (given?.length !== SCRAM_KEY_BYTES || !timingSafeEqual(given, this.#signature as Buffer))
      throw new ProtocolError('the server could not prove that it knows the password', '28P01');
  }

  get finished(): boolean {
    return this.#step === 'done' && this.#signature !== undefined;
  }
}
