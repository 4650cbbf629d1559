// The gearsfs command puts, takes and peeks records of GearsFS streams, mounts
// volumes and looks after nodes. `gearsfs --help` lists what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() { os.Exit(run(newApp(), os.Args[1:])) }

// run runs one command line and returns the process's exit status.
func run(a *app, args []string) int {
	ctx, stop := a.signalContext(context.Background())
	defer stop()
	root := a.rootCommand()
	root.SetArgs(pairUp(args))
	c, err := root.ExecuteContextC(ctx)
	if closing := a.close(); err == nil {
		err = closing
	}
	if err == nil {
		return exitDone
	}
	if !quiet(err) {
		fmt.Fprintln(a.errs, errorLine(c.CommandPath(), a.waitedFor(err)))
	}
	return exitStatus(err)
}

// signalContext returns a context that ends when the process is told to stop;
// a second signal ends the process at once, but for those that onSignal deals
// with. SIGPIPE ends nothing by itself: the
// write that met it fails, so that what was not written can go back.
func (a *app) signalContext(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1)
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		for told := false; ; {
			select {
			case s := <-signals:
				if f := a.onSignal.Load(); f != nil && (*f)(s.(syscall.Signal)) {
					continue
				}
				if told {
					os.Exit(exitSignal + int(s.(syscall.Signal)))
				}
				told = true
				cancel(&signalError{signal: s.(syscall.Signal)})
			case <-parent.Done():
				return
			}
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// processUmask returns the umask that new files and directories are made with.
func processUmask() uint32 {
	mask := syscall.Umask(0)
	syscall.Umask(mask)
	return uint32(mask)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "gearsfs",
		Short: "A file system whose files are queues",
		Long: `A file system whose files are queues: mount it, and put, take and peek the records of
its files' streams.

FILE is a path under a mounted GearsFS; or :/PATH in the volume of the node at ADDR; or
NAME:/PATH in that of a remote that this node knows by name. With --node ADDR a FILE is a
path in that node's volume.
ADDR is host:port or unix:PATH, or several separated by commas. Without --node it is
$GEARSFS_NODE, else unix:$XDG_RUNTIME_DIR/gearsfs.sock, else unix:/run/gearsfs.sock.
DURATION is as in 500ms, 2h, 7d or 2w; sizes take K, M and G.

Exit status: 0 done, 1 failed and nothing changed, 2 wrong usage, 3 not now (empty, full or
--wait over), 4 ended (sealed), 5 outcome unknown, 128+n by a signal.`,
		Example: `  gearsfs mount --data ~/data ~/gears
  gearsfs put ~/gears/jobs data 'convert a.png'
  gearsfs take ~/gears/jobs data`,
		Args:          noSuchCommand,
		RunE:          func(*cobra.Command, []string) error { return usagef("which command?") },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errs)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	help := helpCommand()
	root.SetHelpCommand(help)
	a.group(root, "Streams:", append([]*cobra.Command{
		a.putCommand(), a.takeCommand(), a.peekCommand(), a.eachCommand(), a.holdCommand(), a.updateCommand(), a.moveCommand(),
		a.streamsCommand(), a.setCommand(),
	}, append(a.sealCommands(), a.receiptCommands()...)...)...)
	a.group(root, "Mounting:", a.mountCommand(), a.umountCommand())
	a.group(root, "Files:", a.lsCommand(), a.catCommand(), a.cpCommand(), a.mvCommand(), a.rmCommand(), a.mkdirCommand(), a.statCommand(),
		a.quotaCommand())
	a.group(root, "Nodes:", a.statusCommand(), a.nodesCommand(), a.fsckCommand(), a.waitsCommand(), a.remoteCommand(), a.benchCommand())
	a.group(root, "Others:", a.wordcountCommand(), a.versionCommand(), a.completionCommand(), help)
	return root
}

func (a *app) group(root *cobra.Command, title string, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: title, Title: title})
	for _, c := range commands {
		c.GroupID = title
		c.Flags().SortFlags = false
		root.AddCommand(c)
	}
}

func nodeFlag(f *pflag.FlagSet, at *string) {
	f.Var((*addrFlag)(at), "node", "use the node at ADDR: host:port or unix:PATH, or several separated by commas")
}

// flagError is wrong usage of a flag. What was taken for one may have been meant
// as an argument.
func flagError(err error) error {
	if _, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return usagef("%v: an argument that begins with - follows --", err)
	}
	return usagef("%v", err)
}

// exactly, between and atLeast check how many arguments there are; too few or
// too many are wrong usage.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

func atLeast(n int) cobra.PositionalArgs { return between(n, -1) }

func between(low, high int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef("too few arguments: %s", c.UseLine())
		case high >= 0 && len(args) > high:
			return usagef("too many arguments: %s", c.UseLine())
		}
		return nil
	}
}

// apart adds to an arguments check that of each list of flags at most one is
// given.
func apart(check cobra.PositionalArgs, lists ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		for _, list := range lists {
			var given []string
			for _, name := range strings.Fields(list) {
				if c.Flags().Changed(name) {
					given = append(given, "--"+name)
				}
			}
			if len(given) > 1 {
				return usagef("%s exclude each other", strings.Join(given, " and "))
			}
		}
		return check(c, args)
	}
}

// noSuchCommand is the arguments check of commands that only have subcommands.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = ": " + strings.Join(near, " or ") + "?"
	}
	return usagef("there is no command %q%s", args[0], hint)
}

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Show help about a command",
		Long:    "Show what a command does, as its --help does.",
		Example: "  gearsfs help take",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noSuchCommand(about, rest)
			}
			return about.Help()
		},
	}
}
