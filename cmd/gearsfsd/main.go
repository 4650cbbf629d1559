// The gearsfsd command is a GearsFS node: it keeps a volume in a data
// directory and serves it on sockets, and on a mount point where it is told to.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/mount"
	"github.com/spf13/pflag"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	line := strings.Join(strings.FieldsFunc(err.Error()+advice(err), func(r rune) bool { return r == '\n' }), "; ")
	fmt.Fprintln(os.Stderr, "gearsfsd: "+line)
	if _, ok := errors.AsType[*usageError](err); ok {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

// advice says what to do about errors whose cure is always the same.
func advice(err error) string {
	switch {
	case errors.Is(err, gearsfs.ErrInUse):
		return ": stop that process, or name another directory or address"
	case errors.Is(err, gearsfs.ErrForeign):
		return ": name an empty directory or one that GearsFS made"
	}
	return ""
}

// run runs a node until ctx ends, which is no error.
func run(ctx context.Context, args []string, env func(string) (string, bool), out, errs io.Writer) error {
	s, err := readSettings(args, env)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		_, err := io.WriteString(out, usage())
		return err
	case err != nil:
		return err
	case s.version:
		_, err := fmt.Fprintln(out, "gearsfsd", node.Version())
		return err
	}
	tlsConfig, err := s.tls.Config()
	if err != nil {
		return wrong(err)
	}
	log := slog.New(slog.NewTextHandler(errs, nil))
	teller, err := tell(s, tlsConfig, log)
	if err != nil {
		return wrong(err)
	}
	return errors.Join(serve(ctx, s, tlsConfig, log, teller, errs), teller.close())
}

// serve runs the node until ctx ends.
func serve(ctx context.Context, s settings, tlsConfig *tls.Config, log *slog.Logger, teller *teller, errs io.Writer) error {
	n, err := node.Start(ctx, node.Config{
		Data: s.data, Name: s.name, Listen: s.listen, Insecure: s.insecure, TLS: tlsConfig, Log: log,
		Join: s.join, Advertise: s.advertise, CatchUpBytesPerSecond: int64(min(s.catchUp.Value, math.MaxInt64)), VerifyEvery: s.verifyEvery(),
		ScrubBytesPerSecond: s.scrubRate(),
	})
	if err != nil {
		return wrong(told(ctx, err))
	}
	teller.show(n)
	if s.join != "" {
		if err := n.WaitVoter(ctx); err != nil {
			return errors.Join(told(ctx, err), n.Close())
		}
	}
	ready := func() error {
		teller.ready(true)
		_, err := fmt.Fprintln(errs, "gearsfsd: ready")
		return err
	}
	if s.mount == "" {
		err = wait(ctx, n, ready)
	} else {
		err = mounted(ctx, n, s, ready)
	}
	teller.ready(false)
	return errors.Join(err, n.Close())
}

// wait serves until ctx ends or the node breaks.
func wait(ctx context.Context, n *node.Node, ready func() error) error {
	if err := ready(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.Broken():
		return fmt.Errorf("the node can't go on: %w", err)
	}
}

// mounted serves and mounts; where somebody unmounts it, it goes on serving.
func mounted(ctx context.Context, n *node.Node, s settings, ready func() error) error {
	o := mount.DefaultOptions()
	o.Node, o.Several = n.Address(), n.Replicated
	m, err := n.Local("mount")
	if err != nil {
		return err
	}
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	o.Volume = status.Volume
	if err := node.RunMount(ctx, m, s.mount, o, n.Broken(), ready); err != nil {
		return err
	}
	return wait(ctx, n, func() error { return nil })
}

// told is nil for the error of what was given up because the process was told
// to end.
func told(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// usageError says that the settings are wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// wrong makes an invalid argument a usage error.
func wrong(err error) error {
	if errors.Is(err, gearsfs.ErrInvalid) {
		return &usageError{err}
	}
	return err
}
