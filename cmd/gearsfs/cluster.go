package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// nodeClient asks a node about its volume and the nodes that hold it. It needs
// no session, and where the node itself knows the answer no leader either.
type nodeClient interface {
	Status(ctx context.Context) (gearsfs.NodeStatus, error)
	dgm.Cluster
	Fsck(ctx context.Context, repair bool, progress func(gearsfs.FsckReport)) (gearsfs.FsckReport, error)
	io.Closer
}

// askNode calls ask with the node of --node, of the current directory's mount,
// or the default.
func (a *app) askNode(ctx context.Context, nodeFlag string, ask func(ctx context.Context, c nodeClient, addrs string) error) error {
	addrs := a.hereAddrs(nodeFlag)
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := a.dialCluster(dialing, addrs)
	if err != nil {
		return dialError(ctx, addrs, err)
	}
	return errors.Join(cause(ctx, ask(ctx, c, addrs)), c.Close())
}

func (a *app) dialCluster(ctx context.Context, addrs string) (nodeClient, error) {
	o, err := a.remoteOptions()
	if err != nil {
		return nil, err
	}
	return dgm.DialNode(ctx, addrs, o)
}

// statusJSON is a node as -o json shows it.
type statusJSON struct {
	Node        string        `json:"node"`
	Member      string        `json:"member"` // not a number, which JSON's readers would round
	Address     string        `json:"address"`
	Volume      string        `json:"volume"`
	Version     string        `json:"version"`
	Role        string        `json:"role"`
	Leader      string        `json:"leader"`
	LeaderSince string        `json:"leader_since"` // "" where nobody leads
	Voters      uint32        `json:"voters"`
	Learners    uint32        `json:"learners"`
	Term        uint64        `json:"term"`
	Last        gearsfs.Index `json:"last"`
	Commit      gearsfs.Index `json:"commit"`
	Applied     gearsfs.Index `json:"applied"`
	Durable     gearsfs.Index `json:"durable"`
	Lag         uint64        `json:"lag"`
	LogBytes    uint64        `json:"log_bytes"`
	StateBytes  uint64        `json:"state_bytes"`
	BytesTotal  uint64        `json:"bytes_total"`
	BytesFree   uint64        `json:"bytes_free"`
	Inodes      uint64        `json:"inodes"`
	Sessions    uint32        `json:"sessions"`
	Waits       uint32        `json:"waits"`
	Started     string        `json:"started"`
	Warnings    []string      `json:"warnings"`
}

func statusToJSON(s gearsfs.NodeStatus, addr string) statusJSON {
	return statusJSON{
		Node: s.Name, Member: s.Member.Hex(), Address: addr, Volume: s.Volume, Version: s.Version,
		Role: s.Role, Leader: s.Leader, LeaderSince: sinceText(s.LeaderSince), Voters: s.Voters, Learners: s.Learners,
		Term: s.Term, Last: s.Last, Commit: s.Commit, Applied: s.Applied, Durable: s.Durable,
		Lag: s.Lag(), LogBytes: s.LogBytes, StateBytes: s.StateBytes,
		BytesTotal: s.Usage.BytesTotal, BytesFree: s.Usage.BytesFree, Inodes: s.Usage.Inodes,
		Sessions: s.Sessions, Waits: s.Waits, Started: timeText(s.Started), Warnings: append([]string{}, s.Warnings...),
	}
}

func sinceText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return timeText(t)
}

func (a *app) statusCommand() *cobra.Command {
	var at string
	var format formatFlag
	c := &cobra.Command{
		Use: "status", Short: "Show a node and its volume",
		Long: `Show a node and its volume, one "name value" per line: that of the current directory's
mount, else of ADDR. It is what this node knows, also where nobody leads the volume; lines
that begin with "warning" say what to look after.`,
		Example: "  gearsfs status\n  gearsfs status --node host:4096 -o json",
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.askNode(c.Context(), at, func(ctx context.Context, n nodeClient, addrs string) error {
				s, err := n.Status(ctx)
				if err != nil {
					return err
				}
				return a.printStatus(statusToJSON(s, addrs), format.json)
			})
		},
	}
	clusterFlags(c.Flags(), &at, &format)
	return c
}

func clusterFlags(f *pflag.FlagSet, at *string, format *formatFlag) {
	nodeFlag(f, at)
	f.VarP(format, "output", "o", "write one JSON object per line")
}

func (a *app) printStatus(j statusJSON, asJSON bool) error {
	if asJSON {
		return a.printJSON(j)
	}
	pairs := []pair{
		{"node", j.Node}, {"member", j.Member}, {"address", j.Address}, {"volume", j.Volume}, {"version", j.Version},
		{"role", j.Role}, {"leader", orNone(j.Leader)}, {"leader_since", orNone(j.LeaderSince)},
		{"voters", j.Voters}, {"learners", j.Learners}, {"term", j.Term}, {"last", j.Last},
		{"commit", j.Commit}, {"applied", j.Applied}, {"durable", j.Durable}, {"lag", j.Lag},
		{"log_bytes", j.LogBytes}, {"state_bytes", j.StateBytes},
		{"bytes_total", j.BytesTotal}, {"bytes_free", j.BytesFree}, {"inodes", j.Inodes},
		{"sessions", j.Sessions}, {"waits", j.Waits}, {"started", j.Started},
	}
	for _, w := range j.Warnings {
		pairs = append(pairs, pair{"warning", w})
	}
	return a.pairs(pairs)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// nodeJSON is a node of the volume as `nodes -o json` shows it.
type nodeJSON struct {
	Node       string        `json:"node"`
	Member     string        `json:"member"`
	Address    string        `json:"address"`
	Role       string        `json:"role"`
	Reachable  bool          `json:"reachable"`
	Version    string        `json:"version"`
	Term       uint64        `json:"term"`
	Last       gearsfs.Index `json:"last"`
	Commit     gearsfs.Index `json:"commit"`
	Applied    gearsfs.Index `json:"applied"`
	Lag        uint64        `json:"lag"`
	LagBytes   uint64        `json:"lag_bytes"`
	LogBytes   uint64        `json:"log_bytes"`
	StateBytes uint64        `json:"state_bytes"`
	Trouble    string        `json:"trouble"`
}

func nodeToJSON(n gearsfs.NodeInfo) nodeJSON {
	return nodeJSON{
		Node: n.Name, Member: n.ID.Hex(), Address: n.Addrs, Role: n.Role, Reachable: n.Reachable, Version: n.Version,
		Term: n.Term, Last: n.Last, Commit: n.Commit, Applied: n.Applied, Lag: n.LagEntries, LagBytes: n.LagBytes,
		LogBytes: n.LogBytes, StateBytes: n.StateBytes, Trouble: n.Trouble,
	}
}

func (a *app) nodesCommand() *cobra.Command {
	var at string
	var format formatFlag
	c := &cobra.Command{
		Use: "nodes", Short: "List the nodes of a volume, and look after them",
		Long: `List the nodes that hold a replica of the volume: which of them leads, whether they are
reached from the node that is asked, and how far they lag behind what is committed.`,
		Example: `  gearsfs nodes
  gearsfs nodes -o json
  gearsfs nodes transfer b && gearsfs nodes remove a`,
		Args: noSuchCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.askNode(c.Context(), at, func(ctx context.Context, n nodeClient, _ string) error {
				return a.listNodes(ctx, n, format.json)
			})
		},
	}
	clusterFlags(c.Flags(), &at, &format)
	c.AddCommand(a.nodesRemoveCommand(), a.nodesTransferCommand(), a.nodesVerifyCommand())
	return c
}

func (a *app) listNodes(ctx context.Context, c nodeClient, asJSON bool) error {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "ROLE", "STATE", "TERM", "COMMIT", "APPLIED", "LAG", "BYTES", "ADDRESS", "NOTE"}}
	for _, n := range nodes {
		j := nodeToJSON(n)
		if asJSON {
			if err := a.printJSON(j); err != nil {
				return err
			}
			continue
		}
		row := []string{a.shown(j.Node), j.Role}
		if j.Reachable {
			row = append(row, "up", number(j.Term), number(uint64(j.Commit)), number(uint64(j.Applied)), number(j.Lag), number(j.LagBytes))
		} else {
			row = append(row, "away", "-", "-", "-", "-", "-")
		}
		rows = append(rows, append(row, a.shown(j.Address), a.shown(j.Trouble)))
	}
	if asJSON {
		return nil
	}
	return a.table(rows)
}

// nodesAction makes a command about one node of the volume, or about them all.
func (a *app) nodesAction(c *cobra.Command, arguments int, do func(ctx context.Context, n nodeClient, name string) error) *cobra.Command {
	var at string
	nodeFlag(c.Flags(), &at)
	c.Args = exactly(arguments)
	c.RunE = func(c *cobra.Command, args []string) error {
		name := strings.Join(args, "")
		if arguments > 0 && name == "" {
			return usagef("NAME is empty")
		}
		return a.askNode(c.Context(), at, func(ctx context.Context, n nodeClient, _ string) error {
			err := do(ctx, n, name)
			if errors.Is(err, gearsfs.ErrNotFound) {
				return gearsfs.ErrNotFound.Because("the volume has no node %q: gearsfs nodes lists those that it has", name)
			}
			return err
		})
	}
	return c
}

func (a *app) nodesRemoveCommand() *cobra.Command {
	return a.nodesAction(&cobra.Command{
		Use: "remove NAME", Short: "Remove a node from the volume",
		Long: `Remove a node from the volume: its vote does not count any more, and it is told nothing
more. Its data directory can't be used for the volume again; a new one under the same name
can. A node that leads hands that over first: see gearsfs nodes transfer.`,
		Example: "  gearsfs nodes remove c\n  gearsfs nodes remove c --node host:4096,other:4096",
	}, 1, func(ctx context.Context, n nodeClient, name string) error { return n.RemoveNode(ctx, name) })
}

func (a *app) nodesTransferCommand() *cobra.Command {
	return a.nodesAction(&cobra.Command{
		Use: "transfer NAME", Short: "Have another node lead the volume",
		Long: `Have the node NAME lead the volume. Returns when it does; clients notice a moment's wait
and nothing else.`,
		Example: "  gearsfs nodes transfer b",
	}, 1, func(ctx context.Context, n nodeClient, name string) error { return n.TransferLeader(ctx, name) })
}

func (a *app) nodesVerifyCommand() *cobra.Command {
	return a.nodesAction(&cobra.Command{
		Use: "verify", Short: "Compare the replicas of the volume",
		Long: `Have every node compute a hash of its whole state as of the same entry of the log, and
compare them. Fails where one differs, saying which, and where one can't be asked.`,
		Example: "  gearsfs nodes verify && echo all the same",
	}, 0, func(ctx context.Context, n nodeClient, _ string) error { return n.Verify(ctx) })
}
