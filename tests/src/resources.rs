//! Text of resources, as users write them.

use xtask::lab::Workload;

/// The node that the tests' workloads live on.
pub const NODE: &str = "lab";
/// Their namespace, which allows everything that no policy judges (`kns.t`).
pub const NAMESPACE: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: t
";

/// A `WorkloadEndpoint` with the label `app` of its name, in the namespace `t`.
#[must_use]
pub fn workload(workload: &Workload) -> String {
    workload_with(workload, "")
}

/// The same, with more lines of `spec`, each indented by two.
#[must_use]
pub fn workload_with(workload: &Workload, more: &str) -> String {
    let Workload { name, interface, v4, v6, .. } = workload;
    format!(
        "apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  namespace: t
  labels: {{app: {name}}}
spec:
  node: {NODE}
  orchestrator: k8s
  pod: {name}
  endpoint: eth0
  interfaceName: {interface}
  ipNetworks: [{v4}/32, \"{v6}/128\"]
  profiles: [kns.t]
{more}"
    )
}

/// A `GlobalNetworkPolicy` for the workloads that `selector` finds; `rules` are lines of `spec`, each indented by two.
#[must_use]
pub fn policy(name: &str, selector: &str, rules: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata:
  name: {name}
spec:
  selector: {selector}
{rules}"
    )
}

/// The `FelixConfiguration` `default` with one parameter.
#[must_use]
pub fn felix(parameter: &str, value: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata:
  name: default
spec:
  {parameter}: {value}
"
    )
}

/// Several documents in one file.
#[must_use]
pub fn documents<T: AsRef<str>>(documents: &[T]) -> String {
    documents.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("---\n")
}
