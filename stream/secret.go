package stream

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/store/secretfile"
)

// servers returns the URLs, from URLFile if it is set. The error shows no part of the
// URLs.
func (o ConnectOptions) servers() (string, error) {
	if o.URLFile == "" {
		return o.URL, checkURLs(o.URL)
	}
	if o.URL != "" {
		return "", errTwoURLs
	}
	urls, err := secretfile.Read(o.URLFile)
	if err == nil {
		err = checkURLs(urls)
	}
	if err == nil {
		_, _, err = takeLogin(urls)
	}
	if err != nil {
		return "", fmt.Errorf("URL in the file %s: %w", o.URLFile, err)
	}
	return urls, nil
}

// NotConnected is the error of a connection that is there, but connected to no server at
// the moment: it names the servers, and what may be the reason.
func (o ConnectOptions) NotConnected(reason error) *Error {
	where := "the servers in the file " + o.URLFile
	if urls, err := o.servers(); err == nil {
		where = RedactURL(urls)
	}
	return Classify(fmt.Errorf("not connected to NATS at %s: %w%s", where, withoutPort(reason), o.loginHint(reason, where)))
}

// takeLogin removes user and password, or the token, from URLs, and returns them. It
// refuses URLs with different ones.
func takeLogin(urls string) (bare string, login *url.Userinfo, err error) {
	var found []string
	for raw := range strings.SplitSeq(urls, ",") {
		raw = strings.TrimSpace(raw)
		if !strings.Contains(raw, "://") {
			raw = "nats://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil {
			return "", nil, errors.New("malformed") // checkURLs says more.
		}
		switch {
		case u.User == nil:
		case login == nil:
			login = u.User
		case login.String() != u.User.String():
			return "", nil, errors.New("the servers have different users, passwords or tokens: want one for all of them")
		}
		u.User = nil
		found = append(found, u.String())
	}
	return strings.Join(found, ","), login, nil
}

// logins returns options that read the login from the file at each connection, and
// the URLs without the login. If the file cannot be read then, the login stays as it
// was.
func (o ConnectOptions) logins(urls string) (bare string, options []nats.Option, err error) {
	bare, latest, err := takeLogin(urls)
	if err != nil {
		return "", nil, err
	}
	// nats.go asks for user and token one after the other, from one goroutine at a time.
	read := func() *url.Userinfo {
		if urls, err := o.servers(); err == nil {
			if _, login, err := takeLogin(urls); err == nil {
				latest = login
			}
		}
		return latest
	}
	user := func() (name, password string) {
		if password, is := read().Password(); is {
			return latest.Username(), password
		}
		return "", ""
	}
	token := func() string {
		if latest == nil {
			return ""
		}
		if _, is := latest.Password(); is {
			return ""
		}
		return latest.Username()
	}
	return bare, []nats.Option{nats.UserInfoHandler(user), nats.TokenHandler(token)}, nil
}
