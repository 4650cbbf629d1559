package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
	"github.com/spf13/cobra"
)

type mountOptions struct {
	node       string
	data       string
	options    string
	background bool
	alone      bool
	upgrade    bool
}

func (a *app) mountCommand() *cobra.Command {
	var o mountOptions
	c := &cobra.Command{
		Use:   "mount MOUNTPOINT",
		Short: "Mount a volume",
		Long: `Mount the volume of a node. Without --node a node runs in the mount's own process, on the
data directory --data (default $XDG_DATA_HOME/gearsfs, else ~/.local/share/gearsfs); where
that data is served already, the mount attaches to the node that does. Prints "mounted on
MOUNTPOINT" when it is, and unmounts on ^C, SIGTERM or gearsfs umount.

A second process serves the mount. Should it die, another takes over, and the programs that
use the mount notice nothing but the time that it takes (this needs Linux 6.9). SIGUSR2, or
--upgrade MOUNTPOINT, does the same on purpose, to have the mount served by the program that
is installed by then. A node that does not answer makes calls fail after -o timeout=SECONDS
(default 30); meanwhile they can be interrupted.`,
		Example: `  gearsfs mount --data ~/data ~/gears
  gearsfs mount --node host:4096 --background -o timeout=10 /mnt/gears
  gearsfs mount --upgrade /mnt/gears`,
		Args: apart(exactly(1), "node data upgrade", "upgrade background"),
		RunE: func(c *cobra.Command, args []string) error {
			if o.upgrade {
				return a.upgrade(c.Context(), args[0])
			}
			if c.Flags().Changed("data") && o.data == "" {
				return usagef("--data: DIR is empty")
			}
			return a.mount(c.Context(), o, args[0])
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.StringVar(&o.data, "data", "", "run a node on the data directory `DIR`")
	f.StringVarP(&o.options, "options", "o", "", "mount `OPTIONS`, separated by commas, as of mount(8)")
	f.BoolVar(&o.background, "background", false, "return once it is mounted, and go on behind")
	f.BoolVar(&o.upgrade, "upgrade", false, "have the mount that is there served by the installed program")
	f.BoolVar(&o.alone, "no-supervisor", false, "serve it in this process: the mount dies with it")
	return c
}

func (a *app) umountCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "umount MOUNTPOINT", Short: "Unmount a volume",
		Long: `Unmount a volume, also one whose process is dead or hangs. Where it is in use it goes out
of sight at once, and away when its last user does; who uses it is said on standard error.
With --force it is cut off from them: their calls on it fail, also those that hang.`,
		Example: `  gearsfs umount ~/gears
  gearsfs umount --force ~/gears`,
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			users, err := mount.Evict(args[0], force)
			for _, u := range users {
				a.notef("note: still in use: %v", u)
			}
			return err
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "cut off the programs that use it")
	return c
}

func (a *app) mount(ctx context.Context, o mountOptions, dir string) error {
	options, err := mount.ParseOptions(o.options)
	if err != nil {
		return usagef("%v", err)
	}
	if o.background {
		return a.background(ctx)
	}
	if o.node == "" && o.data == "" {
		if o.data, err = a.defaultData(); err != nil {
			return err
		}
	}
	s, err := a.successor()
	if err != nil {
		return err
	}
	ready, err := newReadySignal(a)
	if err != nil {
		return err
	}
	if s == nil && !o.alone {
		return a.supervise(ctx, dir, ready)
	}
	if s != nil {
		ready.worker = s
		options.Succession, options.Attached, options.Notify = s.succession, s.attached, s.notify
		options.Supervisor = os.Getppid()
	}
	if o.node != "" {
		err = a.mountNode(ctx, o.node, dir, options, ready)
	} else {
		err = a.mountData(ctx, o.data, dir, options, ready)
	}
	return s.failed(ctx, err)
}

// managerOptions are those of a mount's Manager.
func managerOptions(base dgm.RemoteOptions, o mount.Options) dgm.RemoteOptions {
	base.GiveUp = o.GiveUp()
	if o.Succession != nil {
		base.Lasting = o.Succession.Lasting()
	}
	return base
}

// mountManager connects to the node whose volume is mounted.
func (a *app) mountManager(ctx context.Context, addrs string, o mount.Options) (dgm.Manager, error) {
	options, err := a.remoteOptions()
	if err != nil {
		return nil, err
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	m, err := dgm.Dial(dialing, addrs, managerOptions(options, o))
	if err != nil {
		return nil, dialError(ctx, addrs, err)
	}
	a.managers[addrs] = m
	return m, nil
}

// defaultData is where an embedded node keeps its data unless told.
func (a *app) defaultData() (string, error) {
	if dir := a.getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "gearsfs"), nil
	}
	home := a.getenv("HOME")
	if home == "" {
		return "", usagef("where to keep the data? HOME is not set: name a directory with --data")
	}
	return filepath.Join(home, ".local", "share", "gearsfs"), nil
}

// mountNode mounts the volume of a node that runs elsewhere.
func (a *app) mountNode(ctx context.Context, addrs, dir string, o mount.Options, ready readySignal) error {
	m, err := a.mountManager(ctx, addrs, o)
	if err != nil {
		return err
	}
	return runMount(ctx, m, addrs, dir, o, nil, ready)
}

// attachPatience is how long a mount waits for a node that has the data open
// and is not reached: it is starting, or about to end.
const attachPatience = 5 * time.Second

// mountData mounts a node that runs in this process, or, where the data is
// served already, attaches to the one that does.
func (a *app) mountData(ctx context.Context, data, dir string, o mount.Options, ready readySignal) error {
	socket, err := node.SocketIn(data)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(attachPatience)
	for {
		n, err := node.Start(ctx, node.Config{
			Data: data,
			Log:  slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		if err == nil {
			return a.mountEmbedded(ctx, n, dir, o, ready)
		}
		if !errors.Is(err, gearsfs.ErrInUse) {
			return cause(ctx, err)
		}
		m, attachErr := a.mountManager(ctx, socket, o)
		if attachErr == nil {
			return runMount(ctx, m, socket, dir, o, nil, ready)
		}
		if !errors.Is(attachErr, gearsfs.ErrNoNode) || time.Now().After(deadline) {
			return fmt.Errorf("%w, and not reached at %s: %w", err, socket, attachErr)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (a *app) mountEmbedded(ctx context.Context, n *node.Node, dir string, o mount.Options, ready readySignal) error {
	m, err := n.LocalWith("mount", managerOptions(dgm.RemoteOptions{}, o))
	if err == nil {
		o.Several = n.Replicated
		err = runMount(ctx, m, n.Address(), dir, o, n.Broken(), ready)
	}
	if err == nil {
		err = a.outstay(ctx, n, m)
	}
	return errors.Join(err, n.Close())
}

// outstayEvery is how often a node whose mount is gone looks for its clients.
const outstayEvery = 500 * time.Millisecond

// outstay keeps a node whose own mount is gone for the other mounts and
// commands that use it, until those are gone too or ctx ends.
func (a *app) outstay(ctx context.Context, n *node.Node, m dgm.Manager) error {
	for told := false; ctx.Err() == nil; told = true {
		status, err := m.Status(ctx)
		if err != nil {
			return cause(ctx, err)
		}
		others := status.Sessions - 1 // all but m
		if others == 0 {
			return nil
		}
		if !told {
			a.notef("note: unmounted; the node goes on for %d others that use it", others)
		}
		select {
		case <-ctx.Done():
		case err := <-n.Broken():
			return fmt.Errorf("the node can't go on: %w", err)
		case <-time.After(outstayEvery):
		}
	}
	return nil
}

func runMount(ctx context.Context, m dgm.Manager, addrs, dir string, o mount.Options, broken <-chan error, ready readySignal) error {
	o.Node = addrs
	return node.RunMount(ctx, m, dir, o, broken, func() error { return ready.mounted(dir) })
}
