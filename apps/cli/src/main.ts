#!/usr/bin/env node
/** The `lakebase` command. Exit codes: 0 done, 1 failed, 2 something to set right first (the message says what). */
import { LakebaseError, errorMessage } from '@lakebase/base';
import { Command } from 'commander';
import { createContext } from './commands/context.ts';
import { addDrillCommand } from './commands/drill.ts';
import { addInspectCommands } from './commands/inspect.ts';
import { addKeyCommands } from './commands/keys.ts';
import { addStorageCommands } from './commands/storage.ts';
import { addResourceCommands } from './commands/resources.ts';
import { addScrubCommand } from './commands/scrub.ts';
import { addSystemCommands } from './commands/system.ts';

const program = new Command('lakebase')
  .description('Self-hosted serverless Postgres')
  .showHelpAfterError('(add --help for what is possible)')
  .addHelpText(
    'after',
    '\nEnvironment: LAKEBASE_HOME (default .lakebase), LAKEBASE_PG_PORT (55432), LAKEBASE_HTTP_PORT (58080), LAKEBASE_LISTEN (127.0.0.1),\n  LAKEBASE_DATABASE_URL, LAKEBASE_POSTGRES (prefix of an installation; LAKEBASE_POSTGRES_17, _16),\n  LAKEBASE_SUSPEND_SECONDS, LAKEBASE_PAGESERVERS, LAKEBASE_SAFEKEEPERS, LAKEBASE_LOG_LEVEL, LAKEBASE_TLS_CERT, LAKEBASE_TLS_KEY, LAKEBASE_TOKEN, LAKEBASE_API_URL',
  )
  .enablePositionalOptions();
const context = createContext(process.env, process.cwd());
addSystemCommands(program, context);
addResourceCommands(program, context);
addKeyCommands(program, context);
addDrillCommand(program, context);
addScrubCommand(program, context);
addInspectCommands(program, context);
addStorageCommands(program, context);

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `lakebase logs | head` is no failure.
  if (error.code === 'EPIPE') process.exit(0);
});

try {
  await program.parseAsync();
} catch (error) {
  context.err(`lakebase: ${errorMessage(error)}`);
  process.exitCode = error instanceof LakebaseError && error.code === 'CONFIG' ? 2 : 1;
  if (process.exitCode === 2) process.exit();
}
