"""KubeRay 1.5.1's RayCluster, RayJob and RayService: names, types, choices, what must be there.

Our own table, checked against KubeRay's Go types of that time and its API references of 1.6 and 1.7; a later field is
an error here. It has no inside of a pod (Kubernetes' own types do), nothing deprecated or behind a feature gate of the
operator, and no job on somebody else's cluster.
"""

from support.kube_schema import Schema, kubernetes, record, resource

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
"""A Go int32; the operator refuses negative ones."""
SHARE: Schema = {"type": "number", "minimum": 0}
TEXT_BY_TEXT: Schema = {"type": "object", "additionalProperties": TEXT}
POD = kubernetes("api.core.v1.PodTemplateSpec")
SERVICE = kubernetes("api.core.v1.Service")
RESOURCES = kubernetes("api.core.v1.ResourceRequirements")
MANAGER: Schema = {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]}


def texts(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


START_PARAMS = TEXT_BY_TEXT | {"propertyNames": {"not": {"const": "labels"}}}
"""Of `ray start`; the operator refuses labels there, a group has a field for them."""
HEAD = record(
    ("template",),
    rayStartParams=START_PARAMS,
    resources=TEXT_BY_TEXT,
    labels=TEXT_BY_TEXT,
    template=POD,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=SERVICE,
    enableIngress=FLAG,
)
WORKERS = record(
    # The CRD has defaults for the bounds, 0 and 2³¹ - 1; nobody means the second.
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=START_PARAMS,
    resources=TEXT_BY_TEXT,
    labels=TEXT_BY_TEXT,
    template=POD,
    scaleStrategy=record(workersToDelete=texts(TEXT)),
)
AUTOSCALER = record(
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    resources=RESOURCES,
    securityContext=kubernetes("api.core.v1.SecurityContext"),
    env=texts(kubernetes("api.core.v1.EnvVar")),
    envFrom=texts(kubernetes("api.core.v1.EnvFromSource")),
    volumeMounts=texts(kubernetes("api.core.v1.VolumeMount")),
)
REDIS_CREDENTIAL = record(value=TEXT, valueFrom=kubernetes("api.core.v1.EnvVarSource"))
CLUSTER = record(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=record(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs=texts(WORKERS),
    gcsFaultToleranceOptions=record(
        ("redisAddress",),
        redisAddress=TEXT,
        redisUsername=REDIS_CREDENTIAL,
        redisPassword=REDIS_CREDENTIAL,
        externalStorageNamespace=TEXT,
    ),
    headServiceAnnotations=TEXT_BY_TEXT,
    suspend=FLAG,
    managedBy=MANAGER,
) | {"dependentRequired": {"authOptions": ["rayVersion"]}}
"""With a token the operator asks which Ray it starts: 2.52 or newer."""

JOB = record(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    entrypointNumCpus=SHARE,
    entrypointNumGpus=SHARE,
    entrypointResources=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    metadata=TEXT_BY_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=POD,
    submitterConfig=record(backoffLimit=COUNT),
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT | {"minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    suspend=FLAG,
    managedBy=MANAGER,
    rayClusterSpec=CLUSTER,
) | {"dependentRequired": {"ttlSecondsAfterFinished": ["shutdownAfterJobFinishes"]}}
RAY_SERVICE = record(
    ("serveConfigV2", "rayClusterConfig"),
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER,
    upgradeStrategy=record(type={"enum": ["NewCluster", "None"]}),
    excludeHeadPodFromServeSvc=FLAG,
    rayClusterDeletionDelaySeconds=COUNT,
    serveService=SERVICE,
)

MANIFESTS = {
    "raycluster": resource("ray.io/v1", "RayCluster", CLUSTER),
    "rayjob": resource("ray.io/v1", "RayJob", JOB),
    "rayservice": resource("ray.io/v1", "RayService", RAY_SERVICE),
    "rayservice-70b": resource("ray.io/v1", "RayService", RAY_SERVICE),
}
