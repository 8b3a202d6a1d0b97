package harness

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Proxy is between a relay and a server, and can do to the traffic what a network may do.
type Proxy struct {
	testing.TB

	proxy  *toxiproxy.Proxy
	toxics []string
}

// NewProxy forwards connections to address until the test ends.
func NewProxy(tb testing.TB, address string) *Proxy {
	tb.Helper()
	owner := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{TB: tb, proxy: toxiproxy.NewProxy(owner, address, "127.0.0.1:0", address)}
	if err := p.proxy.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.proxy.Stop)
	return p
}

// Address is where the proxy listens, also after it was cut.
func (p *Proxy) Address() string { return p.proxy.Listen }

// Cut ends all connections and takes no more, until Mend.
func (p *Proxy) Cut() { p.proxy.Stop() }

// Mute lets requests pass and loses all answers, until Mend. Then the connections end: after a gap, what follows makes no
// sense.
func (p *Proxy) Mute() {
	p.poison(`{"name": "mute", "type": "timeout", "stream": "downstream", "attributes": {"timeout": 0}}`)
}

// Delay makes requests late, until Mend. Then those that are late arrive at once, even if the sender is gone.
func (p *Proxy) Delay(late time.Duration) {
	p.poison(fmt.Sprintf(`{"name": "delay", "type": "latency", "stream": "upstream", "attributes": {"latency": %d}}`, late.Milliseconds()))
}

func (p *Proxy) poison(toxic string) {
	p.Helper()
	added, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic))
	if err != nil {
		p.Fatal(err)
	}
	p.toxics = append(p.toxics, added.Name)
}

// Mend undoes all of the above.
func (p *Proxy) Mend() {
	p.Helper()
	for _, name := range p.toxics {
		if err := p.proxy.Toxics.RemoveToxic(context.WithoutCancel(p.Context()), name); err != nil {
			p.Fatal(err)
		}
	}
	p.toxics = nil
	Eventually(p.TB, 10*time.Second, "the proxy has its port again", func() bool {
		return p.proxy.Enabled || p.proxy.Start() == nil // Somebody may have borrowed it.
	})
}
