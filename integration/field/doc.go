// Package field runs the relay with other people's rows and in other people's databases, and looks at it from outside: it uses
// the binary, SQL and NATS clients.
//
// # Rows
//
// A producer may INSERT, and a service that owns the table can write any column, with or without the checks. Whatever is in a
// row, either Postgres refuses it with an error that says why, or:
//
//   - events of other aggregates are in the stream within a second of their commit (99 of 100), once and in order
//   - the relay lives, keeps its term, and does not read the stream back again and again
//   - its memory stays within what batch_bytes allows, its log within a megabyte a minute
//   - status and dead list work, and their JSON can be read
//   - the row is in the stream, or among the dead letters, or the log names it
//   - all of this is also true of the next relay, which finds such a row there when its term begins
//
// TestRows has a table of such rows, alone and in thousands. TestDrawnRows draws some, by a seed, and makes a failing case
// smaller.
//
// # Databases
//
// Roles and databases have settings, schemas, encodings, triggers, policies, locks and limits that nobody made with the
// relay in mind. Either the relay works as ever, or it says what is in its way, with the pid, the name or the number that
// a person needs.
//
// # Vacuum
//
// A million dead rows that vacuum cannot remove, or a million rows that wait for a person's decision, delay no other event.
//
//	go test ./integration/field                          what make test runs, three to four minutes
//	go test ./integration/field -field.long              also what takes minutes and gigabytes
//	go test ./integration/field -v -run TestRows/seq     some rows
//	go test ./integration/field -v -run TestOneRow -field.row 'seq=negative headers=scalar'
//	go test ./integration/field -v -run TestDrawnRows -field.seed 42
package field
