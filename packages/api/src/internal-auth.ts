/** Internal credentials. One secret per installation (`<home>/secret`, 32 random bytes as hex, mode 0600) is known to the services;
 *  tokens are HMACs of a scope under it. Computes are less trusted than services: an agent gets only its timeline's token.
 *  Invariant: tokens are compared in constant time and never logged. */
import { createHmac, timingSafeEqual } from 'node:crypto';

/** `service`: any service may call any other. `timeline`: valid for one timeline's WAL and pages only. */
export type TokenScope = 'service' | `timeline:${string}/${string}`;

export function internalToken(secretHex: string, scope: TokenScope): string {
  return createHmac('sha256', Buffer.from(secretHex, 'hex')).update(`lakebase-internal-v1:${scope}`).digest('base64url');
}

export const timelineScope = (project: string, timeline: string): TokenScope => `timeline:${project}/${timeline}`;

/** The scope `presented` proves, out of those that would do here; undefined when none. */
export function verifyToken(secretHex: string, presented: string, accepted: readonly TokenScope[]): TokenScope | undefined {
  const given = Buffer.from(presented);
  let found: TokenScope | undefined;
  for (const scope of accepted) {
    const want = Buffer.from(internalToken(secretHex, scope));
    if (want.length === given.length && timingSafeEqual(want, given)) found = scope;
  }
  return found;
}
