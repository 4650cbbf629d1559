package metrics

import (
	"runtime"
	"time"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/prometheus/client_golang/prometheus"
)

// figure is one gauge of a node. Its name is for ever: dashboards name it.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(f *dgm.Figures) float64
}

func gauge(name, help string, of func(f *dgm.Figures) float64) figure {
	return figure{prometheus.NewDesc("gearsfs_"+name, help, nil, nil), prometheus.GaugeValue, of}
}

func counter(name, help string, of func(f *dgm.Figures) float64) figure {
	return figure{prometheus.NewDesc("gearsfs_"+name, help, nil, nil), prometheus.CounterValue, of}
}

// records is a counter of what happened to records.
func records(name, help string, of func(f *dgm.Figures) uint64) figure {
	return counter("records_"+name+"_total", help+", as this node applied it since it was started; not those of streams in memory.",
		func(f *dgm.Figures) float64 { return float64(of(f)) })
}

// figures are what every node has. There is none by stream, file or session:
// their number has no bound.
var figures = []figure{
	gauge("is_leader", "1 where this node leads the volume.", func(f *dgm.Figures) float64 { return flag(f.Role == "leader") }),
	gauge("has_leader", "1 where this node knows of one that leads the volume.", func(f *dgm.Figures) float64 { return flag(f.Leader != "") }),
	gauge("is_voter", "1 where this node has a vote.", func(f *dgm.Figures) float64 {
		return flag(f.Role == "leader" || f.Role == "voter")
	}),
	gauge("leader_change_timestamp_seconds", "When the node that leads began to, as this node saw it; 0 where none does.",
		func(f *dgm.Figures) float64 { return seconds(f.LeaderSince) }),
	gauge("voters", "Nodes with a vote.", func(f *dgm.Figures) float64 { return float64(f.Voters) }),
	gauge("learners", "Nodes without a vote yet.", func(f *dgm.Figures) float64 { return float64(f.Learners) }),
	gauge("raft_term", "The current term of the volume's group.", func(f *dgm.Figures) float64 { return float64(f.Term) }),
	gauge("raft_last_index", "The last entry of this node's log.", func(f *dgm.Figures) float64 { return float64(f.Last) }),
	gauge("raft_commit_index", "The last entry that this node knows to be committed.", func(f *dgm.Figures) float64 { return float64(f.Commit) }),
	counter("raft_applied_entries_total", "Entries of the log applied since the volume was made: the applied index.",
		func(f *dgm.Figures) float64 { return float64(f.Applied) }),
	gauge("raft_durable_index", "Entries up to here are on this node's disk.", func(f *dgm.Figures) float64 { return float64(f.Durable) }),
	gauge("apply_lag_entries", "Entries that are committed and not applied here yet.",
		func(f *dgm.Figures) float64 { return float64(f.Commit - min(f.Commit, f.Applied)) }),
	gauge("log_size_bytes", "Size of the log on disk.", func(f *dgm.Figures) float64 { return float64(f.LogBytes) }),
	gauge("state_size_bytes", "Size of the state on disk.", func(f *dgm.Figures) float64 { return float64(f.StateBytes) }),
	gauge("volume_size_bytes", "Size of the volume, as df shows it.", func(f *dgm.Figures) float64 { return float64(f.Usage.BytesTotal) }),
	gauge("volume_free_bytes", "Free space of the volume.", func(f *dgm.Figures) float64 { return float64(f.Usage.BytesFree) }),
	gauge("volume_inodes", "Inodes in use.", func(f *dgm.Figures) float64 { return float64(f.Usage.Inodes) }),
	gauge("sessions", "Sessions with a client; 0 at a node that follows.", func(f *dgm.Figures) float64 { return float64(f.Sessions) }),
	gauge("waiting_operations", "Takes, peeks, puts and locks that wait; 0 at a node that follows.",
		func(f *dgm.Figures) float64 { return float64(f.Waits) }),
	records("put", "Records put into streams", func(f *dgm.Figures) uint64 { return f.Counts.Records.Put }),
	records("taken", "Records taken for good, without a lease", func(f *dgm.Figures) uint64 { return f.Counts.Records.Taken }),
	records("leased", "Records handed out under a lease, also again", func(f *dgm.Figures) uint64 { return f.Counts.Records.Leased }),
	records("acked", "Leased records acknowledged", func(f *dgm.Figures) uint64 { return f.Counts.Records.Acked }),
	records("returned", "Leased records given back, by who had them or because the lease ended", func(f *dgm.Figures) uint64 { return f.Counts.Records.Returned }),
	records("dead", "Records handed out too often and moved to KEY.dead", func(f *dgm.Figures) uint64 { return f.Counts.Records.Dead }),
	records("discarded", "Records that were too old, or went for newer ones", func(f *dgm.Figures) uint64 { return f.Counts.Records.Discarded }),
	gauge("warnings", "Warnings that gearsfs status shows.", func(f *dgm.Figures) float64 { return float64(len(f.Warnings)) }),
	gauge("start_time_seconds", "When this node was started.", func(f *dgm.Figures) float64 { return seconds(f.Started) }),
}

func member(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("gearsfs_member_"+name, help+" Only the node that leads says it, of each other one.", []string{"member"}, nil)
}

var (
	readyDesc = prometheus.NewDesc("gearsfs_ready", "1 where /readyz says 200.", nil, nil)
	buildDesc = prometheus.NewDesc("gearsfs_build_info", "What this program is; always 1.", []string{"version", "goversion"}, nil)
	nodeDesc  = prometheus.NewDesc("gearsfs_node_info", "Which node this is, and of what volume; always 1.", []string{"node", "volume"}, nil)

	activeDesc     = member("reachable", "1 where the member was heard of within an election timeout.")
	snapshotDesc   = member("snapshot", "1 where the member is sent a snapshot.")
	lagEntriesDesc = member("lag_entries", "Entries of the log that the member lacks.")
	lagBytesDesc   = member("lag_bytes", "About how much of the log the member lacks.")
)

// Of what the node has applied and written, since it was started.
var (
	commandsDesc = prometheus.NewDesc("gearsfs_commands_total",
		"Commands that this node applied, as every node does, by kind, and how many had an error as their answer (a wait tried in vain too).",
		[]string{"command", "result"}, nil)
	syncDesc   = prometheus.NewDesc("gearsfs_log_sync_duration_seconds", "How long each fdatasync of the log took.", nil, nil)
	commitDesc = prometheus.NewDesc("gearsfs_commit_duration_seconds",
		"How long it took each entry from this node's log, where it leads, to what waits for the disk being answered.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(descs chan<- *prometheus.Desc) {
	for _, f := range figures {
		descs <- f.desc
	}
	for _, d := range []*prometheus.Desc{readyDesc, buildDesc, nodeDesc, commandsDesc, syncDesc, commitDesc,
		activeDesc, snapshotDesc, lagEntriesDesc, lagBytesDesc} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. All is gathered here, when somebody
// asks. A node that is not open yet, or not any more, shows what it is and that
// it is not ready.
func (s *Server) Collect(out chan<- prometheus.Metric) {
	show := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	show(buildDesc, 1, s.version, runtime.Version())
	f, why := s.look()
	show(readyDesc, flag(why == ""))
	if f == nil {
		return
	}
	show(nodeDesc, 1, f.Name, f.Volume)
	for _, fig := range figures {
		out <- prometheus.MustNewConstMetric(fig.desc, fig.kind, fig.of(f))
	}
	for kind, n := range f.Counts.Commands {
		out <- prometheus.MustNewConstMetric(commandsDesc, prometheus.CounterValue, float64(n.Done), kind, "done")
		out <- prometheus.MustNewConstMetric(commandsDesc, prometheus.CounterValue, float64(n.Refused), kind, "refused")
	}
	out <- histogram(syncDesc, &f.Timings.Sync)
	out <- histogram(commitDesc, &f.Timings.Commit)
	for _, m := range f.Followers {
		show(activeDesc, flag(m.Active), m.Name)
		show(snapshotDesc, flag(m.Snapshot), m.Name)
		show(lagEntriesDesc, float64(m.LagEntries), m.Name)
		show(lagBytesDesc, float64(m.LagBytes), m.Name)
	}
}

func histogram(desc *prometheus.Desc, d *dgm.Durations) prometheus.Metric {
	upto, n := d.Cumulative()
	return prometheus.MustNewConstHistogram(desc, n, d.Sum.Seconds(), upto)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}
