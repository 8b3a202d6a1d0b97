// Package relaytest is for tests of what is given to relay.Assemble, and of programs that have a relay built in.
//
// [TestStore], [TestPublisher] and [TestElector] verify what a relay relies on. Whoever replaces a part runs its suite; the
// parts of packages store, stream and election pass them, too:
//
//	func TestMyStore(t *testing.T) {
//		relaytest.TestStore(t, func(t *testing.T) relaytest.StoreUnderTest { … })
//	}
//
// [Outbox], [Stream] and [Elector] are parts in memory that pass them. They use no socket and no goroutine of their own, so a
// relay of them runs in a bubble of testing/synctest, where minutes pass at once. They can be made to fail, as Postgres, NATS
// and a lease do:
//
//	outbox, stream, elector := relaytest.NewOutbox(), relaytest.NewStream(), relaytest.NewElector()
//	r, err := relay.Assemble(relay.Parts{Store: outbox, Publisher: stream.Publisher(), Elector: elector}, relay.Options{})
//
// What only a server can do is not here: concurrent transactions, rights, limits, a network.
package relaytest
