{{/* The pod of a server, and of a host without HTTP ("node") of a server on several hosts. Takes a dict of
     "root" and "node". */}}
{{- define "divserve.pod" -}}
{{- $ := .root -}}
serviceAccountName: {{ include "divserve.serviceAccount" $ }}
automountServiceAccountToken: false
# Variables of every service of the namespace; one called "vllm" would set vLLM's VLLM_PORT.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "divserve.grace" $ }}
securityContext: {{- include "divserve.podSecurity" $ | nindent 2 }}
{{- with $.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
containers:
  - name: divserve
    image: {{ include "divserve.image" $ | quote }}
    imagePullPolicy: {{ $.Values.image.pullPolicy }}
    args:
      - serve
      - {{ required "model: name the model to serve" $.Values.model | quote }}
      {{- if .node }}
      - --headless
      {{- else }}
      - --host=0.0.0.0
      - --port=8000
      {{- end }}
      {{- with $.Values.servedModelName }}
      - {{ printf "--served-model-name=%s" . | quote }}
      {{- end }}
      - --log-format={{ $.Values.logFormat }}
      - --drain-timeout={{ $.Values.shutdown.drainSeconds }}
      - --max-queue={{ int $.Values.maxQueue }}
      {{- if $.Values.apiKeys.existingSecret }}
      - --api-key-file=/etc/divserve/api-keys
      {{- if $.Values.apiKeys.metricsWithoutKey }}
      - --metrics-without-key
      {{- end }}
      {{- end }}
      {{- if gt (int $.Values.gpus) 1 }}
      - --tensor-parallel-size={{ int $.Values.gpus }}
      {{- end }}
      {{- if gt (int $.Values.hosts) 1 }}
      - --data-parallel-size={{ int $.Values.hosts }}
      - --data-parallel-size-local=1
      - --data-parallel-rpc-port=13345
      {{- if .node }}
      - --data-parallel-start-rank=$(POD_INDEX)
      - --data-parallel-address={{ include "divserve.fullname" $ }}-head
      {{- else }}
      - --data-parallel-address=$(VLLM_HOST_IP)
      {{- end }}
      {{- end }}
      {{- range $.Values.args }}
      - {{ . | quote }}
      {{- end }}
    {{- if or $.Values.env $.Values.hub.existingSecret (gt (int $.Values.hosts) 1) }}
    env:
      {{- if gt (int $.Values.hosts) 1 }}
      # Listened at, so it cannot be a name.
      - name: VLLM_HOST_IP
        valueFrom:
          fieldRef: {fieldPath: status.podIP}
      # Not another network of the pod.
      - {name: GLOO_SOCKET_IFNAME, value: eth0}
      {{- if .node }}
      - name: POD_INDEX
        valueFrom:
          fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}
      {{- end }}
      {{- end }}
      {{- if $.Values.hub.existingSecret }}
      - name: HF_TOKEN
        valueFrom:
          secretKeyRef:
            name: {{ $.Values.hub.existingSecret }}
            key: {{ $.Values.hub.key }}
      {{- end }}
      {{- with $.Values.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
    {{- if .node }}
    # Nobody asks it anything: it ends with its engine and with the head. It outlives the head's drain.
    lifecycle:
      preStop:
        exec:
          command: [sleep, {{ add $.Values.shutdown.preStopSeconds $.Values.shutdown.drainSeconds | quote }}]
    {{- else }}
    ports:
      - name: http
        containerPort: 8000
    startupProbe:
      httpGet: {path: /ready, port: http}
      {{- toYaml $.Values.probes.startup | nindent 6 }}
    livenessProbe:
      httpGet: {path: /live, port: http}
      {{- toYaml $.Values.probes.liveness | nindent 6 }}
    readinessProbe:
      httpGet: {path: /ready, port: http}
      {{- toYaml $.Values.probes.readiness | nindent 6 }}
    lifecycle:
      preStop:
        exec:
          command: [sleep, {{ $.Values.shutdown.preStopSeconds | quote }}]
    {{- end }}
    {{- $resources := deepCopy $.Values.resources }}
    {{- if gt (int $.Values.gpus) 0 }}
    {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (int $.Values.gpus)) (get $resources "limits" | default dict)) }}
    {{- end }}
    resources: {{- toYaml $resources | nindent 6 }}
    securityContext: {{- include "divserve.security" $ | nindent 6 }}
    volumeMounts:
      - {name: cache, mountPath: /var/lib/divserve}
      - {name: tmp, mountPath: /tmp}
      - {name: shm, mountPath: /dev/shm}
      {{- if $.Values.apiKeys.existingSecret }}
      - {name: api-keys, mountPath: /etc/divserve, readOnly: true}
      {{- end }}
      {{- if $.Values.models.existingClaim }}
      - {name: models, mountPath: /models, readOnly: true}
      {{- end }}
volumes:
  - name: cache
    {{- if $.Values.cache.existingClaim }}
    persistentVolumeClaim:
      claimName: {{ $.Values.cache.existingClaim }}
    {{- else }}
    emptyDir:
      sizeLimit: {{ $.Values.cache.sizeLimit }}
    {{- end }}
  - name: tmp
    emptyDir: {}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ $.Values.sharedMemory }}
  {{- if $.Values.apiKeys.existingSecret }}
  - name: api-keys
    secret:
      secretName: {{ $.Values.apiKeys.existingSecret }}
      defaultMode: 0440
      items:
        - {key: {{ $.Values.apiKeys.key | quote }}, path: api-keys}
  {{- end }}
  {{- if $.Values.models.existingClaim }}
  - name: models
    persistentVolumeClaim:
      claimName: {{ $.Values.models.existingClaim }}
      readOnly: true
  {{- end }}
{{- with $.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
