// Package images gives root file system tars to tests and to the bench:
// [Debian], [Busybox], [Clients] and [Agents] make them once from packages and
// cache them in build/images. It must not download anything but through scripts/image, which
// the demo uses as well.
package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Debian is the path of a tar with git, python3, coreutils and a shell, about
// 190 MB. The first call takes most of a minute.
func Debian(ctx context.Context) (string, error) { return made(ctx, "debian") }

// Busybox is the path of a tar with one static busybox, about 2 MB.
func Busybox(ctx context.Context) (string, error) { return made(ctx, "busybox") }

// Clients is the path of a tar with what tasks speak to the network with, and
// with the programs of test/clients, about 680 MB. The first call takes minutes.
func Clients(ctx context.Context) (string, error) { return made(ctx, "clients") }

// Agents is the path of a tar with two coding agents, claude and codex, about
// 950 MB. The first call takes a minute or more.
func Agents(ctx context.Context) (string, error) { return made(ctx, "agents") }

// Root is the directory of the module, above the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find go.mod: the working directory is not in a checkout of creel")
		}
		dir = filepath.Dir(dir)
	}
}

func made(ctx context.Context, kind string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts", "image"), kind)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("make %s image: %w: %s", kind, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
