// Package storetest gives tests a real PostgreSQL: a fresh database within a tenth of a second, or a server of their own
// to break.
//
//	func TestOrders(t *testing.T) {
//		pool, err := pgxpool.New(t.Context(), storetest.NewDatabase(t))
//		…
//	}
//
// [NewDatabase] is for nearly every test. The databases of a test binary live in one server, launched by the first call
// and shared by tests that run in parallel; each database is dropped at the end of its test. With OUTBOX_TEST_DSN in the
// environment they are made on the server that it leads to instead, by a role that may create databases.
//
// [Start] is for tests that stop, crash and restart their server. It always launches one, OUTBOX_TEST_DSN or not.
//
// What servers are like, and why none outlives the tests, even tests that were killed: see package postgres, which is also
// the one for programs that are no tests. The end of the test binary ends the shared server. [Main] does it a moment
// earlier, before the test binary reports its result:
//
//	func TestMain(m *testing.M) { storetest.Main(m) }
package storetest
