package stream

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// loginHint says what to set if a server refuses our credentials, or we its
// certificate; empty if neither is why the connection failed. A server says only that it
// refuses them, not why.
func (o ConnectOptions) loginHint(err error, urls string) string {
	switch {
	case is[x509.UnknownAuthorityError](err) && o.TLSCA == "":
		return ": set nats_tls_ca (ConnectOptions.TLSCA) to the certificate of the server's authority"
	case is[x509.UnknownAuthorityError](err):
		return fmt.Sprintf(": the server's certificate is of no authority in %s: correct nats_tls_ca (ConnectOptions.TLSCA)", o.TLSCA)
	case is[x509.HostnameError](err):
		return ": name the server in nats_url as its certificate does"
	case !isAny(err, nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired) && !strings.Contains(err.Error(), "Authorization Violation"):
		return ""
	case o.CredsFile != "":
		if end := expiry(o.CredsFile); !end.IsZero() && time.Now().After(end) {
			return fmt.Sprintf(": the credentials in %s expired at %s: put new ones there (nats_creds, ConnectOptions.CredsFile), which the next attempt reads", o.CredsFile, end.UTC().Format(time.RFC3339))
		}
		return fmt.Sprintf(": the server does not accept the credentials in %s: have its operator look whether they were revoked, or correct nats_creds (ConnectOptions.CredsFile)", o.CredsFile)
	case o.NKeyFile != "":
		return fmt.Sprintf(": the server does not accept the key in %s: add its user there, or correct nats_nkey (ConnectOptions.NKeyFile)", o.NKeyFile)
	case strings.Contains(urls, "@"):
		return ": the server does not accept the user and password of nats_url: correct them"
	}
	return ": the server wants credentials: set nats_creds or nats_nkey, or put a user and password into nats_url"
}

// expiry returns when a file's credentials end; zero if they do not, or if that cannot
// be read.
func expiry(credsFile string) time.Time {
	contents, err := os.ReadFile(credsFile)
	if err != nil {
		return time.Time{}
	}
	token, err := nkeys.ParseDecoratedJWT(contents)
	if err != nil {
		return time.Time{}
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Expires int64 `json:"exp"`
	}
	if err = errors.Join(err, json.Unmarshal(payload, &claims)); err != nil || claims.Expires == 0 {
		return time.Time{}
	}
	return time.Unix(claims.Expires, 0)
}
