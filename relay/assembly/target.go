package assembly

import (
	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/stream"
)

// Target returns how a relay of this configuration connects to NATS, and the stream as it wants it, for programs that
// look at both without relaying. Like [New] it needs Options.NATSURL where nats_url is "embedded". Its error has what
// is wrong with the configuration; what it returns beside is what could have been meant.
func Target(c config.Config, o Options) (stream.ConnectOptions, stream.Setup, error) {
	p, err := planOf(c, o)
	if err != nil {
		err = &ConfigError{err}
	}
	return p.publisher.Connect, p.publisher.Setup, err
}
