// Package config reads what a relay is told from a TOML file and the environment, and checks it. It connects to nothing.
//
//	c, err := config.Load(config.Sources{})
//	…
//	r, err := relay.New(c.RelayConfig())
//
// # Where a value comes from
//
// Later wins:
//
//  1. the default ([Default]),
//  2. the file named by CONFIG_PATH, or config/relay.toml if that exists,
//  3. the environment, one OUTBOX_ variable for every setting. A variable set to the empty string counts as not set, so
//     that a compose file may pass one through without deciding it.
//
// One table, [Fields], drives all of it: what the file and the environment may say, what is accepted, and what outbox-relay
// help config and README.md print. So a setting that is documented is read, and one that is read is documented.
//
// # Guarantees
//
//   - [relay.New] takes what [Load] returns without an error, once the program has put a URL in the place of "embedded".
//   - All faults are reported at once, each as an [*Error] that names its place: file, line and column, or the environment
//     variable. So are settings that do not go together. Of a file that is not TOML only the first fault is reported; the
//     environment is checked all the same.
//   - What is not understood is refused: unknown keys, unknown tables, values of the wrong type and, if the environment can
//     be listed, unknown OUTBOX_ variables. A misspelt setting that silently does nothing is worse than a relay that does
//     not start.
//   - Passwords and tokens are never printed, neither in an error nor through fmt, encoding/json or log/slog: connection
//     strings are of type [Secret]. Of a connection string that is not well formed nothing is shown.
//
// # Who checks what
//
// Each rule is in the package that needs it: package store has those for a DSN and a table's name, package stream those for
// a URL, a subject and the other names. Load calls them. What settings have to do with one another, Load asks [relay.New]. The
// ranges of numbers and durations are those of this package: a relay takes more.
//
// Whether the database answers, or the stream exists, takes a connection, and is not checked here. The files that a setting
// names (credentials, certificates) are read once, so that a missing mount is reported with everything else. Only regular
// files of at most a mebibyte are read.
package config
