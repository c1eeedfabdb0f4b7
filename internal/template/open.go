package template

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"creel/internal/confine"
	"creel/internal/template/content"
	"creel/internal/template/holder"
)

// Parts are what a clone starts from: sealed memory and device state, and the
// root file system, read-only. Close gives them back when the run has ended.
type Parts = holder.Parts

// Open hands out the parts of a template, from its holder, which is started
// where it does not run. A part that is not what the manifest says is an error
// that names it.
func (s *Store) Open(ctx context.Context, m Manifest) (*Parts, error) {
	now, err := load(s.path(m.key()))
	if err == nil && now.Digest != m.Digest {
		err = fmt.Errorf("it was built again meanwhile, as %s; run again", shortDigest(now.Digest))
	}
	if err != nil {
		return nil, fmt.Errorf("open template %s: %w", shortDigest(m.Digest), err)
	}
	parts, err := s.client().Open(ctx, m.Digest)
	if err != nil {
		return nil, fmt.Errorf("open template %s: %w; "+mend, shortDigest(m.Digest), err, shortDigest(m.Digest))
	}
	return parts, nil
}

func holderArgs(o Options, digest string) []string {
	return []string{"-store", o.Dir, "-runtime", o.RuntimeDir, "-digest", digest, "-idle", o.HolderIdle.String()}
}

// HolderMain is a holder process, from start to end. Args are those that a
// store puts behind its Options.Holder.
func HolderMain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("holder", flag.ContinueOnError)
	dir := flags.String("store", "", "directory of the templates")
	runtimeDir := flags.String("runtime", "", "directory of the sockets")
	digest := flags.String("digest", "", "of the template to hold")
	idle := flags.Duration("idle", 5*time.Minute, "time without clones after which to end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := &Store{opts: Options{Dir: *dir, RuntimeDir: *runtimeDir}}
	m, err := s.Inspect(ctx, *digest)
	if err == nil && m.Digest != *digest {
		err = errors.New("no such template")
	}
	if err != nil {
		return holder.Refuse(err)
	}
	root := filepath.Join(*dir, m.RootFS.Path)
	return holder.Serve(ctx, holder.Config{
		Dir: *runtimeDir,
		Template: holder.Template{
			Digest: m.Digest,
			Memory: holder.Part{Path: filepath.Join(s.path(m.key()), memoryName), Digest: m.Memory.Digest},
			State:  holder.Part{Path: filepath.Join(s.path(m.key()), stateName), Digest: m.State.Digest},
			Root:   holder.Part{Path: root, Digest: m.RootFS.Digest},
		},
		Stamps: content.Stamps{Dir: filepath.Join(*dir, stampsName)},
		Idle:   *idle,
		// What is opened by path from then on is the root file system; what is
		// written, the removal of the socket.
		Confine: func() error {
			_, err := confine.Self(confine.Options{
				ReadPaths: []string{filepath.Dir(root)}, WritePaths: []string{*runtimeDir},
			})
			return err
		},
	})
}
