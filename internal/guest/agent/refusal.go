package agent

import (
	"errors"
	"syscall"

	"creel/internal/guest/api"
)

// refusal is err as the host is told it, nil where there is none.
func refusal(err error) *api.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	code := api.CodeInternal
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = api.CodeNoSpace
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		code = api.CodeNotFound
	}
	return &api.Error{Code: code, Message: err.Error()}
}
