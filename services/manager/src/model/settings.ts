/** Postgres settings asked for by users. What storage depends on is the agent's and is refused here, where the user sees why. */
import { AGENT_OWNED_SETTINGS, refusedValue } from '@lakebase/api';
import { badRequest, invalid } from './api-error.ts';

const OWNED_PREFIXES = ['unix_socket_', 'archive_', 'recovery_', 'ssl', 'krb_', 'lakebase.', 'event_source', 'bonjour', 'syslog_'];
const NAME = /^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$/;
const SETTINGS_MAX = 200;
const VALUE_BYTES_MAX = 4_096;

export function checkPgSettings(value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value)) throw invalid('pg_settings must be a map of strings');
  const entries = Object.entries(value as Record<string, unknown>);
  if (entries.length > SETTINGS_MAX) throw invalid(`more than ${SETTINGS_MAX} settings`);
  const out: Record<string, string> = {};
  for (const [rawName, v] of entries) {
    const name = rawName.toLowerCase();
    if (!NAME.test(name)) throw invalid(`${JSON.stringify(rawName.slice(0, 80))} is not the name of a Postgres setting`);
    if (AGENT_OWNED_SETTINGS.has(name) || OWNED_PREFIXES.some((p) => name.startsWith(p)))
      throw badRequest(`setting ${name} belongs to Lakebase and cannot be changed: storage depends on it`);
    if (typeof v !== 'string' && typeof v !== 'number' && typeof v !== 'boolean') throw invalid(`setting ${name} must be a string`);
    const text = String(v);
    if (Buffer.byteLength(text) > VALUE_BYTES_MAX || /[\r\n\0]/.test(text))
      throw invalid(`the value of setting ${name} is too long or has line breaks`);
    const refusal = refusedValue(name, text);
    if (refusal !== undefined) throw badRequest(refusal);
    out[name] = text;
  }
  return out;
}
