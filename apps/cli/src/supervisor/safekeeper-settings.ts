/** What an operator says about the safekeepers' disks: `<home>/safekeepers.json` (docs/operating/wal.md), the same for all of them. Values are checked by
 *  their own schema; the rest of their configuration is the supervisor's. */
import { existsSync, readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

const SAFEKEEPER_SETTINGS: readonly string[] = [
  'walDiskBytes',
  'trimAfterBytes',
  'offloadIdleMs',
  'offloadAgeMs',
  'offloadTailMs',
  'offloadTakeoverMs',
];

export function readSafekeeperSettings(file: string): Readonly<Record<string, unknown>> {
  if (!existsSync(file)) return {};
  let settings: unknown;
  try {
    settings = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  if (typeof settings !== 'object' || settings === null || Array.isArray(settings))
    throw new LakebaseError('CONFIG', `${file} must hold a JSON object with settings of the safekeepers`);
  const unknown = Object.keys(settings).filter((name) => !SAFEKEEPER_SETTINGS.includes(name));
  if (unknown.length > 0)
    throw new LakebaseError('CONFIG', `${file}: there is no setting ${unknown.join(', ')}; there are ${SAFEKEEPER_SETTINGS.join(', ')}`);
  return settings as Record<string, unknown>;
}
