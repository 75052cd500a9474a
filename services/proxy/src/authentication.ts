/** Finds out whether a client is the role it says it is.
 *  - A role with a SCRAM verifier proves knowledge of its password; the password itself never reaches us.
 *  - A role that may log in but has no verifier brings a token as cleartext password, over TLS or from this machine only.
 *  - An unknown endpoint or role goes through a SCRAM exchange against a verifier nothing matches: same messages, same work, same error.
 *  Invariant: whatever the reason of a refusal, the client sees the same message. */
import { LakebaseError, type Logger } from '@lakebase/base';
import type { RoleSecret } from '@lakebase/api';
import {
  type PgError,
  ScramServer,
  type ScramVerifier,
  decodePassword,
  decodeSaslInitialResponse,
  decodeSaslResponse,
  encodeAuthenticationCleartext,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  fatal,
  mockVerifier,
  parseVerifier,
} from '@lakebase/pg-wire';
import type { ClientInput } from './client-input.ts';
import type { Directory } from './directory.ts';

export interface AuthContext {
  readonly input: ClientInput;
  readonly directory: Directory;
  /** undefined: there is no such endpoint. */
  readonly endpointId: string | undefined;
  readonly role: string;
  readonly reserved: boolean;
  /** TLS, or from this machine. */
  readonly private: boolean;
  readonly endpointBinding: Buffer | undefined;
  readonly mockSecret: Buffer;
  readonly log: Logger;
}

export class AuthenticationFailed extends LakebaseError {
  readonly reason: 'password' | 'token';
  readonly pgError: PgError;
  constructor(role: string, reason: 'password' | 'token', detail?: string) {
    super('UNAUTHENTICATED', `password authentication failed for user "${role}"`);
    this.reason = reason;
    this.pgError = fatal('28P01', this.message, {
      ...(detail === undefined ? {} : { detail }),
      hint: 'The endpoint, the user or the password is not right.',
    });
  }
}

/** Returns when the client has proved itself; AuthenticationOk is still to be sent. */
export async function authenticate(c: AuthContext): Promise<void> {
  const secret = c.endpointId === undefined || c.reserved ? null : await c.directory.role(c.endpointId, c.role);
  if (c.endpointId !== undefined && secret !== null && secret.login && secret.verifier === null) {
    await checkToken(c, c.endpointId);
    return;
  }
  await checkPassword(c, verifierOf(secret, c) ?? mockVerifier(c.mockSecret, `${c.endpointId ?? ''}/${c.role}`));
}

function verifierOf(secret: RoleSecret | null, c: AuthContext): ScramVerifier | undefined {
  if (secret === null || secret.verifier === null) return undefined;
  try {
    return parseVerifier(secret.verifier);
  } catch {
    c.log.warn({ role: c.role, endpoint: c.endpointId }, 'the role has a password of a kind we cannot check; set it again');
    return undefined;
  }
}

async function checkPassword(c: AuthContext, verifier: ScramVerifier): Promise<void> {
  const scram = new ScramServer({ verifiers: [verifier], endpointBinding: c.endpointBinding });
  c.input.write(encodeAuthenticationSasl(scram.mechanisms));
  const first = await c.input.nextMessage();
  const { mechanism, data } = decodeSaslInitialResponse(first.type, first.body);
  c.input.write(encodeAuthenticationSaslContinue(scram.first(mechanism, data)));
  const last = await c.input.nextMessage();
  const outcome = scram.final(decodeSaslResponse(last.type, last.body));
  if (outcome === undefined) {
    if (c.endpointId !== undefined) c.directory.forgetRole(c.endpointId, c.role);
    throw new AuthenticationFailed(c.role, 'password');
  }
  c.input.write(encodeAuthenticationSaslFinal(outcome.serverFinal));
}

async function checkToken(c: AuthContext, endpointId: string): Promise<void> {
  if (!c.private)
    throw fatal('28000', 'this role logs in with a token, which is sent only over TLS', { hint: 'Connect with sslmode=require.' });
  c.input.write(encodeAuthenticationCleartext());
  const message = await c.input.nextMessage();
  const token = decodePassword(message.type, message.body);
  if (token === '') throw new AuthenticationFailed(c.role, 'token');
  const identity = await c.directory.token(endpointId, c.role, token);
  if (!identity.valid) throw new AuthenticationFailed(c.role, 'token', identity.reason ?? undefined);
}
