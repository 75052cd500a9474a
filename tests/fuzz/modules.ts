/** What is fuzzed as one module: a resource manager each, page images whatever record they come with, and the reader of WAL bytes. */
import { RM_LOGICALMSG_ID, rmgrName } from '@lakebase/pg-format';
import type { Sample } from './sample.ts';

export interface Module {
  readonly name: string;
  readonly samples: readonly Sample[];
}

export const READER_MODULE = 'WalReader';

export function modulesOf(samples: readonly Sample[]): Module[] {
  const modules: Module[] = [];
  for (let rmid = 0; rmid <= RM_LOGICALMSG_ID; rmid++) {
    const own = samples.filter((sample) => sample.rmid === rmid);
    if (own.length > 0) modules.push({ name: rmgrName(rmid), samples: own });
  }
  modules.push({ name: 'Image', samples: samples.filter((sample) => sample.blocks.some((block) => block.image !== undefined)) });
  modules.push({ name: READER_MODULE, samples });
  return modules;
}
