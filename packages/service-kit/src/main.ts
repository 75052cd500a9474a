/** Process entry: parse, start in order, stop in reverse on SIGTERM or SIGINT, exit codes with a meaning.
 *  0 stopped on request, 1 failed while running (the supervisor restarts it), 2 wrong configuration (restarting will not help). */
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { failpointsFromEnvironment } from './failpoints.ts';
import { createLogger } from './logger.ts';

export const EXIT_OK = 0;
export const EXIT_FAILED = 1;
export const EXIT_CONFIG = 2;

/** Stops what was started, in reverse order, once. */
export class Teardown {
  readonly #log: Logger;
  #steps: { name: string; stop: () => Promise<void> | void }[] = [];

  constructor(log: Logger) {
    this.#log = log;
  }

  add(name: string, stop: () => Promise<void> | void): void {
    this.#steps.push({ name, stop });
  }

  async run(): Promise<void> {
    const steps = this.#steps.reverse();
    this.#steps = [];
    for (const step of steps) {
      try {
        await step.stop();
      } catch (error) {
        this.#log.warn({ step: step.name, err: errorMessage(error) }, 'stop step failed');
      }
    }
  }
}

export interface ServiceContext {
  readonly log: Logger;
  readonly teardown: Teardown /** Ends the process as failed. */;
  readonly fail: (error: unknown) => void;
}

/** Runs a service until a signal. `start` registers each thing it started with `teardown`. A second signal ends at once. */
export async function runService(name: string, logLevel: string, start: (context: ServiceContext) => Promise<void>): Promise<void> {
  const log = createLogger(name, logLevel);
  const teardown = new Teardown(log);
  let stopping = false;
  const stop = async (code: number): Promise<void> => {
    if (stopping) process.exit(code);
    stopping = true;
    setTimeout(() => {
      log.error({}, 'stop took too long; exiting');
      process.exit(EXIT_FAILED);
    }, 30_000).unref();
    await teardown.run();
    log.info({ code }, 'stopped');
    process.exit(code);
  };
  const fail = (error: unknown): void => {
    log.error({ err: errorMessage(error), stack: error instanceof Error ? error.stack : undefined }, 'fatal');
    void stop(error instanceof LakebaseError && error.code === 'CONFIG' ? EXIT_CONFIG : EXIT_FAILED);
  };
  process.on('SIGTERM', () => void stop(EXIT_OK));
  process.on('SIGINT', () => void stop(EXIT_OK));
  process.on('uncaughtException', fail);
  process.on('unhandledRejection', fail);
  try {
    failpointsFromEnvironment(process.env);
    await start({ log, teardown, fail });
  } catch (error) {
    fail(error);
  }
}
