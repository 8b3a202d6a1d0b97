package publisher

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/wire"
)

// link is the connection that events go over; the zero link is none. While a connection
// is being made, only its dialer is there, by which its callbacks are told from those
// of a former one.
type link struct {
	conn    *nats.Conn
	dialer  *wire.Dialer
	replies string // The prefix of the reply subjects on this connection.
}

// close closes the connection without sending what is left.
func (l link) close() {
	if l.dialer != nil {
		l.dialer.Close()
	}
	if l.conn != nil {
		l.conn.Close()
	}
}

// usableConn returns the connection. It returns nil if there is none, or if no answer can
// come on it: a connection on which a subscription was denied is closed, since the
// subscription stays denied there.
func (p *Publisher) usableConn() *nats.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link.conn == nil || !p.requests.isDeaf() {
		return p.link.conn
	}
	p.link.dialer.Close()
	go p.link.conn.Close() // It waits for the network.
	return nil
}

// connected returns the connection, or makes one if there is none. Its error is a *stream.Error.
func (p *Publisher) connected(ctx context.Context) (*nats.Conn, error) {
	conn := p.usableConn()
	if conn == nil {
		return p.connect(ctx)
	}
	type state struct {
		closed, connected bool
		reason            error
	}
	now, err := await.Call(ctx, func() (state, error) {
		return state{conn.IsClosed(), conn.IsConnected(), conn.LastError()}, nil
	})
	switch {
	case err != nil: // It is reconnecting, to a server that says nothing.
		now.reason = err
	case now.closed: // nats.go has given it up, after an error that it does not know.
		return p.connect(ctx)
	case now.connected && !p.alive(ctx, conn):
		return p.connect(ctx)
	case now.connected:
		return conn, nil
	case now.reason == nil:
		now.reason = nats.ErrDisconnected
	}
	return nil, p.options.Connect.NotConnected(now.reason)
}

const (
	// quietFor is for how long a server may have sent nothing before Open doubts that it is there.
	quietFor = time.Second
	// pongPatience bounds the wait for the answer to a PING: a part of the least time that an Open has.
	pongPatience = 500 * time.Millisecond
)

// alive reports whether the server is still there. A path that has begun to lose everything, such as one whose NAT forgot the
// connection, breaks nothing: nats.go notices that by its pings, after 10 to 15 s, and Open is what follows when an answer
// did not come. The connection is closed if it is of no use.
func (p *Publisher) alive(ctx context.Context, conn *nats.Conn) bool {
	p.mu.Lock()
	dialer := p.link.dialer
	p.mu.Unlock()
	if dialer == nil || dialer.Quiet() < quietFor {
		return true
	}
	asking, cancel := context.WithTimeout(ctx, pongPatience)
	defer cancel()
	_, err := await.Call(asking, func() (struct{}, error) { return struct{}{}, conn.FlushWithContext(asking) })
	if err == nil || ctx.Err() != nil {
		return true
	}
	p.mu.Lock()
	if p.link.dialer == dialer {
		p.link = link{} // So that nobody hears of the end of this connection as if it were news.
	}
	p.mu.Unlock()
	dialer.Close()
	go conn.Close() // It waits for the network.
	return false
}

// connect makes a connection. Its error is a *stream.Error.
func (p *Publisher) connect(ctx context.Context) (*nats.Conn, error) {
	p.mu.Lock()
	dialer := wire.NewDialer(p.guard)
	if p.batches.open != nil || !p.acks.empty() {
		p.fail(stream.Classify(fmt.Errorf("connection to NATS closed: %w", nats.ErrConnectionClosed)))
	}
	p.link = link{dialer: dialer} // A former connection is not listened to any more.
	p.requests.reset()
	p.mu.Unlock()
	conn, err := stream.Connect(ctx, p.connectOptions(dialer))
	if err != nil {
		return nil, err
	}
	replies, err := p.listen(ctx, conn)
	if err != nil {
		link{conn: conn, dialer: dialer}.close()
		return nil, stream.Classify(fmt.Errorf("subscribe to acknowledgements: %w", err))
	}
	_, _ = await.Call(ctx, func() (*nats.Subscription, error) {
		return conn.Subscribe(deletionSubject(p.Stream()), func(*nats.Msg) { p.deleted(dialer) })
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link.dialer != dialer { // Close was called meanwhile.
		link{conn: conn, dialer: dialer}.close()
		return nil, stream.Classify(fmt.Errorf("connect to NATS: %w", nats.ErrConnectionClosed))
	}
	p.link.conn, p.link.replies = conn, replies
	p.requests.use(conn)
	return conn, nil
}

// connectOptions are the options of a connection with this dialer: the publisher hears
// what becomes of it.
func (p *Publisher) connectOptions(dialer *wire.Dialer) stream.ConnectOptions {
	options := p.options.Connect
	options.Dialer = dialer
	options.OnDisconnect = func(err error) {
		if err == nil {
			err = nats.ErrDisconnected
		}
		// The answers to what is pending went to the old connection.
		p.failAll(dialer, fmt.Errorf("connection to NATS lost: %w", err))
	}
	options.OnClosed = nil
	options.OnError = func(err error) {
		if denied, ok := stream.AsPermissionError(err); ok {
			p.violated(dialer, denied)
		} else if stream.Classify(err).Fault == stream.FaultSetup {
			p.failAll(dialer, err)
		}
	}
	options.OnReconnect = func() {
		if conn := p.requests.Current(); conn != nil {
			p.reconnected(conn)
		}
		if p.options.Connect.OnReconnect != nil {
			p.options.Connect.OnReconnect()
		}
	}
	return options
}

// listen subscribes to acknowledgements, and returns the prefix of their subjects.
func (p *Publisher) listen(ctx context.Context, conn *nats.Conn) (replies string, err error) {
	return await.Call(ctx, func() (string, error) {
		replies := conn.NewInbox() + "."
		_, err := conn.Subscribe(replies+">", p.answered)
		if err == nil {
			err = conn.FlushTimeout(wire.ConnectTimeout) // By then, a refusal has come.
		}
		if err == nil {
			err = stream.CheckInbox(conn)
		}
		return replies, err
	})
}
