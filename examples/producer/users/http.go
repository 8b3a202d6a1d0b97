package users

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
)

// maxBody is the size of the largest request body in bytes.
const maxBody = 64 << 10

// Handler serves POST /users and PATCH /users/{id}/verify.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users", s.postUser)
	mux.HandleFunc("PATCH /users/{id}/verify", s.patchVerify)
	return mux
}

func (s *Service) postUser(w http.ResponseWriter, r *http.Request) {
	user, err := readUser(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err)
		return
	}
	id, err := s.Create(r.Context(), user.Name, user.Email)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusCreated, map[string]int64{"id": id})
}

func (s *Service) patchVerify(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		s.refuse(w, r, http.StatusBadRequest, fmt.Errorf("user id %q: want a positive number", r.PathValue("id")))
		return
	}
	switch err := s.Verify(r.Context(), id); {
	case err == nil:
		s.answer(w, r, http.StatusOK, map[string]string{"status": "verified"})
	case errors.Is(err, ErrNotFound):
		s.refuse(w, r, http.StatusNotFound, err)
	case errors.Is(err, ErrVerified):
		s.refuse(w, r, http.StatusConflict, err)
	default:
		s.fail(w, r, err)
	}
}

// newUser is the body of POST /users.
type newUser struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

func readUser(body io.Reader) (newUser, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return newUser{}, fmt.Errorf("body: %w", err)
	}
	var user newUser
	if err := json.Unmarshal(data, &user); err != nil {
		return newUser{}, fmt.Errorf("body: %w", err)
	}
	for _, field := range []struct{ name, value string }{{"name", user.Name}, {"email", user.Email}} {
		switch {
		case strings.TrimSpace(field.value) == "":
			return newUser{}, fmt.Errorf("%s: is empty", field.name)
		case strings.ContainsRune(field.value, 0):
			return newUser{}, fmt.Errorf("%s: holds a zero byte", field.name)
		}
	}
	return user, nil
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.DebugContext(r.Context(), "client gone before its answer", slog.Any("error", err))
	}
}

// refuse tells the client what it did wrong.
func (s *Service) refuse(w http.ResponseWriter, r *http.Request, status int, err error) {
	s.answer(w, r, status, map[string]string{"error": err.Error()})
}

// fail answers with status 500, and logs the reason.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	s.log.ErrorContext(r.Context(), "request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
	s.answer(w, r, http.StatusInternalServerError, map[string]string{"error": "internal error"})
}
