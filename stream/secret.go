package stream

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
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
	urls, err := readSecret(o.URLFile)
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

// where names the servers in errors.
func (o ConnectOptions) where() string {
	urls, err := o.servers()
	if err != nil {
		return "the servers in the file " + o.URLFile
	}
	return RedactURL(urls)
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

// maxSecretFile is how many bytes a file with a secret may have.
const maxSecretFile = 64 << 10

// readSecret returns the only line of a file.
func readSecret(name string) (string, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", errors.New("it is not a regular file") // A pipe would block.
	}
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case len(content) > maxSecretFile:
		return "", fmt.Errorf("it has more than %d bytes", maxSecretFile)
	case secret == "":
		return "", errors.New("it is empty")
	case strings.ContainsAny(secret, "\n\x00"):
		return "", errors.New("it has several lines, or a zero byte")
	}
	return secret, nil
}
