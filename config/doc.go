// Package config holds the values a relay runs with: it reads them from a TOML
// file and the environment, checks them, and speaks to neither Postgres nor
// NATS.
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
//  3. the environment, one OUTBOX_ variable for every setting. A variable set
//     to the empty string counts as not set, so that a compose file may pass
//     one through without deciding it.
//
// One table, [Fields], drives all of it: what the file and the environment may
// say, what is accepted, and what outbox-relay help config and README.md print. A
// setting that is documented is therefore read, and one that is read is
// documented.
//
// # Guarantees
//
//   - What [Load] returns without an error lies within the accepted range of
//     every field and satisfies the relations between them.
//   - Every fault is reported at once, each as an [*Error] that names its place
//     (file, line and column, or the environment variable), what was found and
//     what is accepted. A file that is not TOML at all counts as one fault, at
//     the first place it breaks; the environment is checked all the same.
//   - What is not understood is refused: unknown keys, unknown tables, values
//     of the wrong type and, if the environment can be listed, unknown OUTBOX_
//     variables. A misspelt setting that silently does nothing is worse than a
//     relay that does not start.
//   - Passwords and tokens are never printed, neither in an error nor through
//     fmt, encoding/json or log/slog: connection strings are of type [Secret],
//     which shows itself through [Redact]. A string too broken to tell where
//     its password ends is masked as a whole.
//
// # What is not checked here
//
// Whether the database answers, the stream exists or the subject template fits
// it: that takes a connection, and belongs to the packages that have one. What
// they find without one, [Sources.Check] adds to the faults, each with its place.
// The files a setting names (credentials, certificates) are read once, so that a
// missing mount is reported with everything else. Only regular files of at most
// a mebibyte are read.
package config
