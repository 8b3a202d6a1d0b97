// Package secretfile reads a secret from a file of its own, such as those that container platforms mount: a password, a
// DSN, a URL with a token.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// MaxSize is how many bytes a file may have: more than any secret takes.
const MaxSize = 64 << 10

// Read returns the only line of a file, without its end. It refuses what is no regular
// file, since a pipe would block, a file without text, and one with several lines, a
// zero byte or more than MaxSize bytes. No error shows what is in the file.
func Read(name string) (string, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", errors.New("it is not a regular file")
	}
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return "", err
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case len(content) > MaxSize:
		return "", fmt.Errorf("it has more than %d bytes", MaxSize)
	case secret == "":
		return "", errors.New("it is empty")
	case strings.ContainsAny(secret, "\n\x00"):
		return "", errors.New("it has several lines, or a zero byte")
	}
	return secret, nil
}
