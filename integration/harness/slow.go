package harness

import (
	"net"
	"testing"
	"time"
)

// SlowLine forwards connections to address until the test ends, at so many bytes a second towards it and back; 0 sets no
// limit. It returns its own address.
func SlowLine(tb testing.TB, address string, there, back int) string {
	tb.Helper()
	listener, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(tb.Context(), "tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			_ = near.(*net.TCPConn).SetReadBuffer(64 << 10) //nolint:errcheck // It is TCP; what waits here is not on its way.
			go carry(near, far, back)
			go carry(far, near, there)
		}
	}()
	return listener.Addr().String()
}

// carry copies until either side ends, and then ends both.
func carry(to, from net.Conn, bytesPerSecond int) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if bytesPerSecond > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(bytesPerSecond)) //nolint:forbidigo // This is what makes it slow.
		}
		if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
			return
		}
	}
}
