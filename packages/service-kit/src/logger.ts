/** Structured logs: one JSON object a line on stdout (pino). Never log tokens, passwords, page or WAL bytes. */
import type { Logger } from '@lakebase/base';
import { type Logger as PinoLogger, pino } from 'pino';

export function createLogger(service: string, level = 'info'): Logger {
  return wrap(pino({ level, base: { service }, timestamp: pino.stdTimeFunctions.isoTime }));
}

function wrap(log: PinoLogger): Logger {
  return {
    debug: (fields, message) => log.debug(fields, message),
    info: (fields, message) => log.info(fields, message),
    warn: (fields, message) => log.warn(fields, message),
    error: (fields, message) => log.error(fields, message),
    child: (fields) => wrap(log.child(fields)),
  };
}
