#!/usr/bin/env python3
"""The objects of `afd render kubernetes` against what Kubernetes' API says of them.

usage: kubernetes.py AFD MODEL

Guards: a field that the API server would refuse or ignore; a selector that selects nothing; ranks that start under the
wrong number; a probe or volume that names what is not there; a topology in the ConfigMap that is not the file's.
The schema below is an excerpt in our own words, of the fields that afd writes; every other field is refused.
"""
import json
import os
import subprocess
import sys
import tempfile

try:
    import jsonschema
    import yaml
except ImportError as missing:
    print(f"skipped: no {missing.name} (Debian: python3-jsonschema, python3-yaml)")
    sys.exit(77)

TEXT, COUNT, TRUTH = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?$"}}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}


def fields(required="", **known):
    return {"type": "object", "properties": known, "required": required.split(), "additionalProperties": False}


def many(of):
    return {"type": "array", "items": of, "minItems": 1}


SELECTOR = fields("matchLabels", matchLabels=LABELS)
EXEC = fields("command", command=many(TEXT))
PROBE = fields(exec=EXEC, httpGet=fields("port", path=TEXT, port={"type": ["string", "integer"]}), periodSeconds=COUNT,
               timeoutSeconds=COUNT, failureThreshold={"type": "integer", "minimum": 1})
CONTAINER = fields(
    "name image", name=NAME, image=TEXT, command=many(TEXT),
    ports=many(fields("containerPort", name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    startupProbe=PROBE, livenessProbe=PROBE, readinessProbe=PROBE, lifecycle=fields(preStop=fields("exec", exec=EXEC)),
    resources=fields(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=fields(allowPrivilegeEscalation=TRUTH, readOnlyRootFilesystem=TRUTH,
                           seccompProfile=fields("type", type={"enum": ["RuntimeDefault"]}),
                           capabilities=fields(add=many(TEXT), drop=many(TEXT))),
    volumeMounts=many(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=TRUTH)))
VOLUME = fields("name", name=NAME, configMap=fields("name", name=NAME),
                secret=fields("secretName", secretName=NAME, defaultMode={"type": "integer", "maximum": 0o777}),
                emptyDir=fields(medium={"enum": ["Memory"]}),
                persistentVolumeClaim=fields("claimName", claimName=NAME, readOnly=TRUTH))
ANTI = fields("topologyKey labelSelector", topologyKey=TEXT, labelSelector=SELECTOR)
POD = fields("containers", terminationGracePeriodSeconds=COUNT, automountServiceAccountToken=TRUTH,
             enableServiceLinks=TRUTH, containers=many(CONTAINER), volumes=many(VOLUME),
             affinity=fields(podAntiAffinity=fields(requiredDuringSchedulingIgnoredDuringExecution=many(ANTI))))
META = fields("name labels", name=NAME, labels=LABELS)
CLAIM = fields("metadata spec", metadata=fields("name", name=NAME),
               spec=fields("accessModes resources", accessModes=many({"enum": ["ReadWriteOnce"]}),
                           resources=fields("requests", requests=QUANTITIES)))
SPECS = {
    ("v1", "Service"): fields("selector ports", selector=LABELS, clusterIP={"enum": ["None"]},
                              publishNotReadyAddresses=TRUTH,
                              ports=many(fields("port", name=NAME, port=COUNT, targetPort={"type": ["string", "integer"]}))),
    ("policy/v1", "PodDisruptionBudget"): fields("selector", maxUnavailable=COUNT, selector=SELECTOR),
    ("apps/v1", "StatefulSet"): fields(
        "serviceName selector template", serviceName=NAME, replicas=COUNT,
        podManagementPolicy={"enum": ["Parallel"]}, selector=SELECTOR,
        template=fields("metadata spec", metadata=fields("labels", labels=LABELS), spec=POD),
        volumeClaimTemplates=many(CLAIM)),
}


def schema_of(o):
    key = (o["apiVersion"], o["kind"])
    head = dict(apiVersion={"const": key[0]}, kind={"const": key[1]}, metadata=META)
    if key == ("v1", "ConfigMap"):
        return fields("metadata data", data={"type": "object", "additionalProperties": TEXT}, **head)
    return fields("metadata spec", spec=SPECS[key], **head)


def render(afd, topology, *options):
    done = subprocess.run([afd, "render", "kubernetes", topology, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.safe_load_all(done.stdout) if o]


def selects(selector, labels):
    return all(labels.get(k) == v for k, v in selector.items())


def check_pod(o, objects):
    """What refers to something refers to what is there."""
    spec, labels = o["spec"]["template"]["spec"], o["spec"]["template"]["metadata"]["labels"]
    assert selects(o["spec"]["selector"]["matchLabels"], labels), o["metadata"]["name"]
    service = [s for s in objects if s["kind"] == "Service" and s["metadata"]["name"] == o["spec"]["serviceName"]]
    assert service and service[0]["spec"]["clusterIP"] == "None" and selects(service[0]["spec"]["selector"], labels)
    for anti in spec.get("affinity", {}).get("podAntiAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", []):
        assert selects(anti["labelSelector"]["matchLabels"], labels)
    maps = {c["metadata"]["name"] for c in objects if c["kind"] == "ConfigMap"}
    volumes = {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in o["spec"].get("volumeClaimTemplates", [])}
    assert {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v} <= maps
    for c in spec["containers"]:
        assert {m["name"] for m in c["volumeMounts"]} <= volumes
        assert {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle"} <= set(c)
        ports = {p["name"] for p in c.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "httpGet" in c[probe]:
                assert c[probe]["httpGet"]["port"] in ports
            else:
                health = c["command"][2].split("--health ")[1].split()[0]
                assert health == c[probe]["exec"]["command"][2] and health in c["lifecycle"]["preStop"]["exec"]["command"][2]
        for kind, value in c["resources"].get("limits", {}).items():  # extended resources: limit and request are one
            assert c["resources"]["requests"][kind] == value


def ranks_of(o, pod):
    """The numbers that the shell in the pod's containers computes."""
    numbers = []
    for c in o["spec"]["template"]["spec"]["containers"]:
        script = c["command"][2]
        rank = script.split("--rank ")[1].split(" --scheduler")[0]
        env = {"HOSTNAME": f"{o['metadata']['name']}-{pod}", "PATH": os.environ["PATH"]}
        numbers.append(int(subprocess.run(["sh", "-c", f"echo {rank}"], env=env, capture_output=True, text=True).stdout))
    return numbers


def check(afd, topology, attn, ffn, per_instance, *options):
    objects = render(afd, topology, *options)
    for o in objects:
        jsonschema.validate(o, schema_of(o))
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names)), names
    sets = {o["metadata"]["labels"]["app.kubernetes.io/component"]: o for o in objects if o["kind"] == "StatefulSet"}
    assert sorted(sets) == ["attn", "ffn", "scheduler"]
    assert (sets["attn"]["spec"]["replicas"], sets["ffn"]["spec"]["replicas"]) == (attn, ffn)
    for o in sets.values():
        check_pod(o, objects)
    for role, count in (("attn", attn), ("ffn", ffn)):
        found = [n for pod in range(count) for n in ranks_of(sets[role], pod)]
        assert found == list(range(count * per_instance)), found
    config = next(o for o in objects if o["kind"] == "ConfigMap")["data"]["topology.yaml"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
        f.write(config)
        f.flush()
        again = next(o for o in render(afd, f.name, *options) if o["kind"] == "ConfigMap")["data"]["topology.yaml"]
    assert config == again, "the topology in the ConfigMap is another one when it is loaded"
    hosts = yaml.safe_load(config)["pools"]["ffn"]["hosts"]
    pod = sets["ffn"]["metadata"]["name"]
    assert hosts[0] == f"{pod}-0.{sets['ffn']['spec']['serviceName']}", hosts
    return sets


def main():
    afd, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "t.yaml")
        with open(path, "w") as f:
            f.write(f"cluster: Small_1\nmodel: {{ path: {model} }}\n"
                    "pools: { attn: { instances: 2, max_instances: 3 }, ffn: { instances: 3 } }\n")
        check(afd, path, 2, 3, 1)
        with open(path, "w") as f:
            f.write(f"cluster: big\nmodel: {{ path: {model} }}\nlaunch: {{ by: kubernetes }}\npools:\n"
                    "  attn: { instances: 2, ranks_per_instance: 8, device: { type: cuda, class: H800 } }\n"
                    "  ffn: { instances: 2, ranks_per_instance: 8, max_instances: 4, device: { type: cuda, class: H20 } }\n")
        sets = check(afd, path, 2, 2, 8, "--rdma", "rdma/hca")
        container = sets["ffn"]["spec"]["template"]["spec"]["containers"][7]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "1", "rdma/hca": "1"}
        assert "IPC_LOCK" in container["securityContext"]["capabilities"]["add"]
        assert sets["ffn"]["spec"]["template"]["spec"]["affinity"]
        with open(path, "w") as f:
            f.write("model: { path: relative }\n")
        done = subprocess.run([afd, "render", "kubernetes", path], capture_output=True, text=True)
        assert done.returncode == 1 and "model.path is relative" in done.stderr, done.stderr
    print(json.dumps({"kubernetes": "as its API says"}))


main()
